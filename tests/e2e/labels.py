"""Reads a device's label straight from its file, with nothing of the product's code.

The format is `docs/engine.md`, 'Labels': two slots of 2 MiB; the valid one with the higher
sequence number counts. The checksum covers sequence, length and body.
"""

from __future__ import annotations

import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

SLOT = 2 << 20
HEADER = struct.Struct("<8sQII")


@cache
def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum (RFC 3720, appendix B.4)."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def read(path: Path) -> dict[str, Any]:
    """The label's body; ValueError if neither slot is valid."""
    best: tuple[int, dict[str, Any]] | None = None
    with path.open("rb") as device:
        for slot in (0, 1):
            device.seek(slot * SLOT)
            header = device.read(HEADER.size)
            magic, sequence, length, checksum = HEADER.unpack(header)
            if magic != b"VSLABEL1" or length > SLOT - HEADER.size:
                continue
            body = device.read(length)
            if crc32c(header[8:20] + body) == checksum and (best is None or sequence > best[0]):
                best = sequence, json.loads(body)
    if best is None:
        raise ValueError(f"{path} has no valid label")
    return _plain(best[1])


def _plain(body: dict[str, Any]) -> dict[str, Any]:
    """The body with its T1 objects as they are told elsewhere: extents in bytes."""
    devices, unit = body.pop("devices"), body["unit"]
    body["t1s"] = [
        {
            "t1": {
                "id": entry["id"],
                "volume": entry["volume"],
                "size": entry["size"],
                "home": entry["home"],
                "extents": [
                    {"device": devices[place], "offset": offset * unit, "length": length * unit}
                    for place, *numbers in entry["extents"]
                    for offset, length in zip(numbers[::2], numbers[1::2], strict=True)
                ],
            },
            "epoch": entry["epoch"],
            "ready": entry["ready"],
        }
        for entry in body["t1s"]
    ]
    return body
