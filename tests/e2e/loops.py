"""Loop devices that a test makes and takes away."""

from __future__ import annotations

import subprocess
from pathlib import Path

MIB = 1 << 20


class Loops:
    """Block devices over sparse files. Use as a context manager."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: list[str] = []

    def __enter__(self) -> Loops:
        return self

    def __exit__(self, *_: object) -> None:
        for device in self._made:
            subprocess.run(["losetup", "--detach", device], check=True, timeout=30)

    def make(self, name: str, size: int) -> str:
        """A device of `size` bytes; its path."""
        backing = self._root / f"{name}.backing"
        with backing.open("wb") as file:
            file.truncate(size)
        argv = ["losetup", "--find", "--show", str(backing)]
        done = subprocess.run(argv, check=True, timeout=30, capture_output=True, text=True)
        self._made.append(done.stdout.strip())
        return self._made[-1]
