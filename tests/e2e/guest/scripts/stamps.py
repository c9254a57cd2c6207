"""In the guest: writes files that can be checked, each made durable before the next is begun.

    stamps.py write DIRECTORY JOURNAL    until the journal's .stop exists
    stamps.py check DIRECTORY JOURNAL    whether what was made durable is there

A file's bytes follow from its number. The journal (on another disk) has each durable one's number,
and the seconds since the host booted; a slot's file may be of a later number than the journal's
last of that slot, never of an earlier one.
"""

import hashlib
import os
import sys
import time
from pathlib import Path

SLOTS = 48


def content(number: int) -> bytes:
    """Between 4 and 100 KiB, another for each number."""
    block = hashlib.sha256(str(number).encode()).digest() * 128
    return f"{number:016}".encode() + block * (1 + number % 24)


def write(directory: Path, journal: Path) -> int:
    """Stamps until it is told to stop. An error of the filesystem ends it."""
    lines = journal.read_text().splitlines() if journal.exists() else []
    number = int(lines[-1].split()[0]) if lines else 0
    stop = journal.with_suffix(".stop")
    with journal.open("a", buffering=1) as said:
        while not stop.exists():
            number += 1
            with (directory / str(number % SLOTS)).open("wb") as out:
                out.write(content(number))
                out.flush()
                os.fsync(out.fileno())
            said.write(f"{number} {time.monotonic():.3f}\n")
    stop.unlink()
    return 0


def check(directory: Path, journal: Path) -> int:
    """Prints what is wrong; the status says whether anything is."""
    durable = {}
    for line in journal.read_text().splitlines():
        number = int(line.split()[0])
        durable[number % SLOTS] = number
    # The one after the last may have been begun: it may be there in part.
    begun = max(durable.values()) + 1
    wrong = []
    for slot, least in durable.items():
        found = (directory / str(slot)).read_bytes()
        number = int(found[:16] or 0)
        half_done = begun % SLOTS == slot and len(found) < len(content(begun))
        if number < least and not half_done:
            wrong.append(f"slot {slot} has number {number}, durable was {least}")
        elif number == least and found != content(number):
            wrong.append(f"slot {slot} differs from what was written")
    print("\n".join(wrong) or f"{len(durable)} files are right")
    return int(bool(wrong))


if __name__ == "__main__":
    mode, directory, journal = sys.argv[1:]
    sys.exit({"write": write, "check": check}[mode](Path(directory), Path(journal)))
