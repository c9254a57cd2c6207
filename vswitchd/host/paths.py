"""What a host is told of a volume, and by whom."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from vswitchd.errors import Kind, VsError


@dataclass(frozen=True)
class Paths:
    """A volume's id, its size in bytes, and the addresses (HOST:PORT) of the SPs that serve it,
    the owner's first."""

    volume_id: str
    size: int
    addresses: tuple[str, ...]


class Controller(Protocol):
    """The controller as a host calls it."""

    def paths(self, volume: str) -> Awaitable[Paths]:
        """Of the volume of that name. VsError if there is none, or no controller."""
        ...


def address_of(uri: str) -> str:
    """HOST:PORT of an NBD URI; VsError VS1081 for one of another kind: the kernel's client is
    kept alive over TCP alone, since only there both ends of a connection tell it apart."""
    parts = urlsplit(uri)
    if parts.scheme != "nbd" or not parts.port:
        raise VsError(
            "VS1081",
            Kind.INVALID,
            f"{uri} can't be attached: let the SP listen on TCP ([processor] nbd)",
        )
    return parts.netloc
