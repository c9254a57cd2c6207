"""nbdkit's Python plugin in front of a volume, so that every filter of nbdkit works on it.

    nbdkit --filter=cow python .../vswitchd/nbdkit/plugin.py volume=db1

Parameters: `volume`; `controller` (HOST:PORT, for vswitchctl, which finds the volume's SPs), or
`uri` once for each NBD URI; `hold` (seconds that a request waits for an SP, default 60);
`vswitchctl` (its path, default as found). One connection to one SP at a time: when it is lost,
the next SP is asked, and the request is sent again. Needs nbdkit-plugin-python and python3-libnbd
of the system's Python; nbdkit-python-plugin(3) says what is called when.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

import nbd
import nbdkit

API_VERSION = 2

#: Seconds until vswitchctl must have answered, and between rounds through all SPs.
ASK = 30.0
PAUSE = 0.2

_settings: dict[str, str] = {"controller": "", "hold": "60", "vswitchctl": "vswitchctl"}
_uris: list[str] = []


def config(key: str, value: str) -> None:
    """One key=value of the command line."""
    if key == "uri":
        _uris.append(value)
    elif key in ("volume", *_settings):
        _settings[key] = value
    else:
        raise ValueError(f"unknown parameter {key!r}: volume, uri, {', '.join(sorted(_settings))}")


def config_complete() -> None:
    """Refuses what can't work before anybody connects."""
    if not _uris and "volume" not in _settings:
        raise ValueError("volume=NAME is missing (or uri=nbd://HOST:PORT/NAME)")
    try:
        if float(_settings["hold"]) < 0:
            raise ValueError
    except ValueError:
        raise ValueError("hold is a number of seconds of 0 or more") from None
    if not _uris and not shutil.which(_settings["vswitchctl"]):
        raise ValueError("vswitchctl is not found; say vswitchctl=PATH, or uri=nbd://...")


def thread_model() -> int:
    """Requests of several clients at once, one at a time of each."""
    return int(nbdkit.THREAD_MODEL_SERIALIZE_REQUESTS)


class Volume:
    """One client's way to the volume."""

    def __init__(self, readonly: bool) -> None:
        self.readonly = readonly
        self._hold = float(_settings["hold"])
        self._uris = list(_uris)
        self._nbd: Any = None
        self.run(lambda _: None)

    def _look_up(self) -> None:
        """Asks where the volume is served; keeps what was known when nobody answers."""
        if _uris:
            return
        argv = [_settings["vswitchctl"]]
        if _settings["controller"]:
            argv += ["--controller", _settings["controller"]]
        argv += ["volume", "show", _settings["volume"], "-o", "json"]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=ASK, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            nbdkit.debug(f"vswitchctl: {error}")
            return
        if done.returncode == 0:
            self._uris = list(json.loads(done.stdout)["nbd_uris"])
        elif done.returncode == 3 and not self._uris:
            raise FileNotFoundError(errno.ENOENT, done.stderr.strip())
        else:
            nbdkit.debug(done.stderr.strip())

    def _connect(self, deadline: float) -> None:
        """To the first SP that lets us in; OSError ENOTCONN when none does in time."""
        why = "no SP serves it"
        while True:
            self._look_up()
            for uri in self._uris:
                handle = nbd.NBD()
                handle.set_uri_allow_local_file(True)
                try:
                    handle.connect_uri(uri)
                except nbd.Error as error:
                    why = f"{uri}: {error.string}"
                    continue
                self._tune(handle)
                nbdkit.debug(f"connected to {uri}")
                self._nbd = handle
                return
            if time.monotonic() > deadline:
                raise OSError(errno.ENOTCONN, why)
            time.sleep(PAUSE)

    def _tune(self, handle: Any) -> None:
        """Nothing is waited for on a path for longer than a request is held at most."""
        waits = max(1, int(self._hold))
        with socket.socket(fileno=os.dup(handle.aio_get_fd())) as link:
            if link.family == socket.AF_UNIX:
                return
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, waits)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, waits)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, waits * 1000)

    def run(self, request: Callable[[Any], Any]) -> Any:
        """Carries a request out, over another SP if its connection is lost meanwhile; OSError with
        what the volume answered."""
        deadline = time.monotonic() + self._hold
        while True:
            if self._nbd is None:
                self._connect(deadline)
            try:
                return request(self._nbd)
            except nbd.Error as error:
                if not (self._nbd.aio_is_dead() or self._nbd.aio_is_closed()):
                    raise OSError(error.errnum or errno.EIO, error.string) from None
                nbdkit.debug(f"lost: {error.string}")
                self._nbd = None

    def close(self) -> None:
        """Says goodbye."""
        if self._nbd is not None and self._nbd.aio_is_ready():
            self._nbd.shutdown()


def open(readonly: bool) -> Volume:
    """A client has come."""
    opened: Volume = _checked(lambda: Volume(readonly))
    return opened


def _checked(call: Callable[[], Any]) -> Any:
    """Errors with the number that the client is told."""
    try:
        return call()
    except OSError as error:
        nbdkit.set_error(error.errno or errno.EIO)
        raise


def _run(volume: Volume, request: Callable[[Any], Any]) -> Any:
    return _checked(lambda: volume.run(request))


def close(volume: Volume) -> None:
    """The client has gone."""
    volume.close()


def get_size(volume: Volume) -> int:
    """Bytes."""
    return int(_run(volume, lambda h: h.get_size()))


def block_size(_: Volume) -> tuple[int, int, int]:
    """Any; best whole blocks; at most so much."""
    return 1, 4096, 32 << 20


def can_write(volume: Volume) -> bool:
    """What SPs serve can be written."""
    return not volume.readonly


def can_flush(_: Volume) -> bool:
    """Always, as trim, zero and multi-conn."""
    return True


can_trim = can_zero = can_multi_conn = can_flush


def can_fua(_: Volume) -> int:
    """Carried out by the SP."""
    return int(nbdkit.FUA_NATIVE)


def can_cache(_: Volume) -> int:
    """Carried out by the SP."""
    return int(nbdkit.CACHE_NATIVE)


def _fua(flags: int) -> int:
    return int(nbd.CMD_FLAG_FUA) if flags & nbdkit.FLAG_FUA else 0


def pread(volume: Volume, buffer: bytearray, offset: int, _: int) -> None:
    """Reads."""
    buffer[:] = _run(volume, lambda h: h.pread(len(buffer), offset))


def pwrite(volume: Volume, buffer: bytes, offset: int, flags: int) -> None:
    """Writes."""
    data = bytearray(buffer)
    _run(volume, lambda h: h.pwrite(data, offset, _fua(flags)))


def flush(volume: Volume, _: int) -> None:
    """Durable is what was answered before, whichever connection it went over."""
    _run(volume, lambda h: h.flush())


def trim(volume: Volume, count: int, offset: int, flags: int) -> None:
    """Discards."""
    _run(volume, lambda h: h.trim(count, offset, _fua(flags)))


def zero(volume: Volume, count: int, offset: int, flags: int) -> None:
    """Writes zeroes."""
    sent = _fua(flags)
    if not flags & nbdkit.FLAG_MAY_TRIM:
        sent |= int(nbd.CMD_FLAG_NO_HOLE)
    if flags & nbdkit.FLAG_FAST_ZERO:
        sent |= int(nbd.CMD_FLAG_FAST_ZERO)
    _run(volume, lambda h: h.zero(count, offset, sent))


def cache(volume: Volume, count: int, offset: int, _: int) -> None:
    """Has it read ahead."""
    _run(volume, lambda h: h.cache(count, offset))


def dump_plugin() -> None:
    """`nbdkit --dump-plugin`."""
    os.write(1, b"vswitchd_volume=1\n")
