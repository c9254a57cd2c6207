"""What every command shares: the client, how to print, how to wait, exit statuses."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from vswitchd.errors import Kind, VsError

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from vswitchd.api.client import Client

EXIT = {
    Kind.INVALID: 2,
    Kind.NOT_FOUND: 3,
    Kind.EXISTS: 4,
    Kind.PRECONDITION: 4,
    Kind.STALE: 4,
    Kind.NO_SPACE: 4,
    Kind.UNSAFE: 5,
    Kind.UNREACHABLE: 6,
    Kind.TIMEOUT: 7,
    Kind.INTERNAL: 1,
}


class Output(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class Context:
    """One invocation's settings, from the options in front of the noun."""

    address = "127.0.0.1:9440"
    _client: Client | None = None

    @property
    def client(self) -> Client:
        """Connected when first needed, so that `--help` stays quick."""
        if self._client is None:
            from vswitchd.api.client import Client

            self._client = Client(self.address)
        return self._client


context = Context()


def note(text: str) -> None:
    """A message for people, on stderr."""
    sys.stderr.write(text + "\n")


def plain(message: Message) -> Any:
    """A message as its canonical JSON, under the proto's own names."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def dump(value: Any, output: Output) -> None:
    """Data for programs, on stdout."""
    if output is Output.JSON:
        sys.stdout.write(json.dumps(value, indent=2) + "\n")
    else:
        import yaml

        sys.stdout.write(yaml.safe_dump(value, sort_keys=False))


def show(messages: Message | Sequence[Message], output: Output, table: Callable[[], None]) -> None:
    """Prints one message or a list of them, in the way that was asked for."""
    if output is Output.TABLE:
        table()
    elif isinstance(messages, Sequence):
        dump([plain(message) for message in messages], output)
    else:
        dump(plain(messages), output)


def watched(look: Callable[[], None], watch: bool) -> None:
    """Does it once, or again every two seconds until Ctrl-C."""
    look()
    while watch:
        time.sleep(2)
        if sys.stdout.isatty():
            sys.stdout.write("\x1b[H\x1b[2J")
        look()


def usage(message: str) -> VsError:
    """A wrong command line."""
    return VsError("VS1060", Kind.INVALID, message)
