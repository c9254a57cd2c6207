"""An SP's process replaced by another one of the same SP, with the listeners and the hosts'
sessions of the first: an upgrade that hosts do not see.

The new process is started by the old one and says when it is ready to take over; only then does
the old one end. Both speak over a pair of unix sockets, one message for each thing given, its
descriptor with it (unix(7), SCM_RIGHTS).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vswitchd.errors import Kind, VsError

#: Seconds until the new process must be ready: it has only to be loaded.
READY = 30.0
#: Seconds that the new process waits for what it is given, and the old one for it to be taken.
GIVEN = 60.0
_HELLO = b"ready"
_MOST = 1 << 16


@dataclass(frozen=True)
class Listener:
    """A socket that listens, and what is spoken there: "nbd", "iscsi" or, by other SPs, "peer"."""

    fd: int
    speaks: str
    address: str


@dataclass(frozen=True)
class Session:
    """A host's session; `facts` and what it has sent and nobody has carried out are the
    engine's own (`Engine.hand_over`)."""

    fd: int
    facts: str
    unread: bytes


@dataclass
class Legacy:
    """What a process leaves: the addresses that it was bound to, and open descriptors."""

    vsm: str = ""
    metrics: str = ""
    listeners: list[Listener] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)


class Successor:
    """The process that takes over, seen from the one that ends."""

    def __init__(self, argv: Sequence[str]) -> None:
        """Starts `vswitchd` with these arguments, as it is installed now, and waits until it is
        ready; VsError VS5090 if it is not, and then everything stays as it was. Blocks."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.settimeout(READY)
        with far:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vswitchd", *argv, "--inherit", str(far.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[far.fileno()],
            )
        self._socket = near
        try:
            hello = near.recv(_MOST)
        except OSError:
            hello = b""
        if hello != _HELLO:
            self._process.kill()
            self._process.wait()
            near.close()
            raise VsError(
                "VS5090",
                Kind.TIMEOUT,
                "the process that should take over did not get ready; this one goes on. What is "
                "installed now may not run: its own words are above",
            )
        near.settimeout(GIVEN)

    @property
    def pid(self) -> int:
        """Of the new process."""
        return self._process.pid

    def give(self, legacy: Legacy) -> None:
        """Gives all of it, and closes what was given. Blocks."""
        with self._socket as out:
            head: dict[str, object] = {"vsm": legacy.vsm, "metrics": legacy.metrics}
            head |= {"listeners": len(legacy.listeners), "sessions": len(legacy.sessions)}
            _send(out, head, [])
            for listener in legacy.listeners:
                told: dict[str, object] = {"speaks": listener.speaks, "address": listener.address}
                _send(out, told, [listener.fd])
            for session in legacy.sessions:
                # What is unread may be many MiB: a file of memory goes with the socket.
                unread = os.memfd_create("unread", os.MFD_CLOEXEC)
                with os.fdopen(unread, "wb", closefd=False) as file:
                    file.write(session.unread)
                _send(out, {"facts": session.facts}, [session.fd, unread])


def take(fd: int) -> Legacy:
    """Says that this process is ready, and gets what the one before it leaves. VsError VS5091 if
    that one goes on after all. Blocks."""
    lost = VsError(
        "VS5091", Kind.TIMEOUT, "the process before this one goes on, or left nothing behind"
    )
    with socket.socket(fileno=fd) as given:
        given.settimeout(GIVEN)
        try:
            given.sendall(_HELLO)
            head, _ = _receive(given)
            legacy = Legacy(head["vsm"], head["metrics"])
            for _ in range(head["listeners"]):
                told, fds = _receive(given)
                legacy.listeners.append(Listener(fds[0], told["speaks"], told["address"]))
            for _ in range(head["sessions"]):
                told, fds = _receive(given)
                with os.fdopen(fds[1], "rb") as file:
                    file.seek(0)
                    legacy.sessions.append(Session(fds[0], told["facts"], file.read()))
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise lost from error
    return legacy


def _send(out: socket.socket, facts: dict[str, object], fds: list[int]) -> None:
    try:
        socket.send_fds(out, [json.dumps(facts).encode()], fds)
    finally:
        for fd in fds:
            os.close(fd)


def _receive(given: socket.socket) -> tuple[dict[str, Any], list[int]]:
    data, fds, _, _ = socket.recv_fds(given, _MOST, 4)
    if not data:
        raise ConnectionResetError
    found = json.loads(data)
    return found, fds
