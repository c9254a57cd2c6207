"""What a host remembers of its attachments, in a file that is replaced as a whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from vswitchd.errors import Kind, VsError
from vswitchd.host.decide import Attachment, Link


def load(path: Path) -> dict[str, Attachment]:
    """By volume; none if there is no file. VsError VS9081 if it is damaged."""
    try:
        raw = json.loads(path.read_text())
        return {one["volume"]: _attachment(one) for one in raw["attachments"]}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VsError(
            "VS9081",
            Kind.INTERNAL,
            f"{path} can't be understood ({error}): move it away and start again; volumes stay "
            "attached meanwhile, and are found by their ids",
        ) from None


def _attachment(raw: Mapping[str, object]) -> Attachment:
    fields = dict(raw)
    fields["addresses"] = tuple(fields["addresses"])  # type: ignore[arg-type]
    fields["links"] = tuple(Link(**link) for link in fields["links"])  # type: ignore[attr-defined]
    return Attachment(**fields)  # type: ignore[arg-type]


def save(path: Path, attachments: Mapping[str, Attachment]) -> None:
    """Durable when it returns."""
    beside = path.with_suffix(".new")
    with beside.open("w") as out:
        json.dump({"attachments": [asdict(one) for one in attachments.values()]}, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    beside.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
