"""What is to be done for an attached volume: values in, values out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

#: Slots for connections beyond those of the SPs that serve a volume when it is attached: the
#: kernel takes no more later, and others may come to serve it.
SPARE = 2
MOST_SLOTS = 16


def path_of(index: int) -> str:
    """The device of that index."""
    return f"/dev/nbd{index}"


@dataclass(frozen=True)
class Link:
    """A connection that was given to the kernel, by its two ends as HOST:PORT, and the address
    that was asked for."""

    address: str
    local: str
    remote: str


@dataclass(frozen=True)
class Attachment:
    """A volume that is /dev/nbd<index>. `addresses`: where it was last known to be served, the
    owner's first; `slots`: connections that the kernel has room for."""

    volume: str
    volume_id: str
    index: int
    slots: int
    addresses: tuple[str, ...]
    links: tuple[Link, ...] = field(default=())

    @property
    def device(self) -> str:
        """Its path."""
        return path_of(self.index)


def slots_for(addresses: Sequence[str]) -> int:
    """How many connections a new device should have room for."""
    return min(len(addresses) + SPARE, MOST_SLOTS)


def missing(addresses: Sequence[str], connected: Collection[str], slots: int) -> list[str]:
    """The addresses to connect to: each that serves the volume and has no connection, as long as
    the kernel has a dead one to put it in the place of."""
    found = [a for a in addresses if a not in connected]
    return found[: max(slots - len(connected), 0)]


def established(tables: Iterable[str]) -> set[tuple[str, str]]:
    """(local, remote) of every established connection, from /proc/net/tcp and /proc/net/tcp6
    (Documentation/networking/proc_net_tcp.rst). Addresses of IPv6 stand in brackets; those of
    IPv4 within IPv6 are given as IPv4."""
    found = set()
    for table in tables:
        for line in table.splitlines()[1:]:
            parts = line.split()
            if len(parts) > 3 and parts[3] == "01":
                found.add((_address(parts[1]), _address(parts[2])))
    return found


def _address(text: str) -> str:
    """`0100007F:1F90`, each four bytes of the address as a little-endian number in hex."""
    digits, _, port = text.partition(":")
    raw = b"".join(
        int(digits[at : at + 8], 16).to_bytes(4, "little") for at in range(0, len(digits), 8)
    )
    return printed(raw, int(port, 16))


def printed(raw: bytes, port: int) -> str:
    """An address of 4 or 16 bytes and a port, in the one form that links are compared in."""
    mapped = b"\0" * 10 + b"\xff\xff"
    if len(raw) == 16 and raw.startswith(mapped):
        raw = raw[12:]
    if len(raw) == 4:
        return f"{'.'.join(map(str, raw))}:{port}"
    return f"[{raw.hex(':', 2)}]:{port}"
