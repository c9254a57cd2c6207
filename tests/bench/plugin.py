"""What a storage server written in Python costs: an nbdkit plugin over one file.

Run by nbdkit with the system's Python, never imported by the benchmark.
"""

import os

import nbdkit

API_VERSION = 2

_path = ""


def config(key: str, value: str) -> None:
    """Takes `file=PATH`."""
    global _path
    if key != "file":
        raise RuntimeError(f"unknown parameter {key}")
    _path = value


def thread_model() -> int:
    """Many requests at once, as far as the interpreter's lock lets them."""
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def open(readonly: bool) -> int:
    """A descriptor for each connection."""
    return os.open(_path, os.O_RDONLY if readonly else os.O_RDWR)


def close(handle: int) -> None:
    """The connection has ended."""
    os.close(handle)


def get_size(handle: int) -> int:
    """The file's."""
    return os.fstat(handle).st_size


def can_multi_conn(handle: int) -> bool:
    """All connections share the page cache."""
    return True


def can_fua(handle: int) -> int:
    """Writes get the flag themselves."""
    return int(nbdkit.FUA_NATIVE)


def pread(handle: int, buf: bytearray, offset: int, flags: int) -> None:
    """Fills the whole buffer."""
    if os.preadv(handle, [buf], offset) != len(buf):
        raise RuntimeError("short read")


def pwrite(handle: int, buf: memoryview, offset: int, flags: int) -> None:
    """Writes, and waits for the disk if asked to."""
    if os.pwrite(handle, buf, offset) != len(buf):
        raise RuntimeError("short write")
    if flags & nbdkit.FLAG_FUA:
        os.fdatasync(handle)


def flush(handle: int, flags: int) -> None:
    """Everything that was written before."""
    os.fdatasync(handle)
