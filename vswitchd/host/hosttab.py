"""/etc/vswitchd/hosttab: what is attached when the host boots, one volume a line.

# volume   device      ('-': any that is free)
db1        /dev/nbd0
scratch    -
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vswitchd.errors import Kind, VsError
from vswitchd.host.decide import path_of

_DEVICE = re.compile(r"/dev/nbd(\d{1,4})")


def device_index(device: str, where: str = "") -> int | None:
    """The index of `/dev/nbdN`; None for '-'. VsError VS1080 for anything else."""
    if device == "-":
        return None
    if found := _DEVICE.fullmatch(device):
        return int(found[1])
    raise VsError("VS1080", Kind.INVALID, f"{where}{device!r} is no device; say /dev/nbdN or '-'")


def parse(text: str, name: str = "hosttab") -> dict[str, int | None]:
    """Volumes and the indexes of their devices; VsError VS1080 names the line that is wrong."""
    found: dict[str, int | None] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"{name} line {number}: "
        if len(words) > 2:
            raise VsError("VS1080", Kind.INVALID, f"{where}more than a volume and a device")
        if words[0] in found:
            raise VsError("VS1080", Kind.INVALID, f"{where}{words[0]} is there already")
        found[words[0]] = device_index(words[1] if len(words) > 1 else "-", where)
    taken = [index for index in found.values() if index is not None]
    if len(set(taken)) < len(taken):
        raise VsError("VS1080", Kind.INVALID, f"{name}: two volumes have the same device")
    return found


def edited(text: str, changes: Mapping[str, int | bool | None]) -> str:
    """The text with a volume's line replaced or added (an index, or None for any), or taken out
    (False); all else, comments too, stays as it is."""
    left = dict(changes)
    lines = []
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if words and words[0] in left:
            index = left.pop(words[0])
            if index is not False:
                lines.append(_line(words[0], index))
        else:
            lines.append(line)
    lines += [_line(volume, index) for volume, index in left.items() if index is not False]
    return "".join(f"{line}\n" for line in lines)


def _line(volume: str, index: int | None) -> str:
    return f"{volume}  {'-' if index is None else path_of(index)}"
