"""The quickstart's addresses: the defaults if they are free, and the same at every start."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from vswitchd.errors import Kind, VsError

HOST = "127.0.0.1"

#: What listens, and where it would like to.
WANTED = {
    "controller.listen": 9440,
    "controller.metrics": 9441,
    "sp-a.vsm": 9450,
    "sp-a.metrics": 9451,
    "sp-a.peer": 9460,
    "sp-a.nbd": 10809,
    "sp-b.vsm": 9452,
    "sp-b.metrics": 9453,
    "sp-b.peer": 9461,
    "sp-b.nbd": 10810,
    "sp-c.vsm": 9454,
    "sp-c.metrics": 9455,
    "sp-c.peer": 9462,
    "sp-c.nbd": 10811,
}


def is_free(port: int) -> bool:
    """True if a server could listen there now."""
    with socket.socket() as probe:
        # As servers do: what lingers of a past connection is no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
        return True


def _any_free(taken: set[int]) -> int:
    """A free port that nobody wants by default."""
    for _ in range(100):
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port: int = probe.getsockname()[1]
        if port not in taken:
            return port
    raise VsError("VS5071", Kind.UNREACHABLE, "no TCP port is free on this machine")


def choose(file: Path) -> dict[str, int]:
    """The ports by name, kept in `file`.

    VsError VS3070 if one that was chosen earlier is in use, VS1071 if the file is damaged.
    """
    if file.exists():
        ports = _read(file)
        for name, port in ports.items():
            if not is_free(port):
                raise VsError(
                    "VS3070",
                    Kind.PRECONDITION,
                    f"port {port} ({name}) is in use; end what listens there, or remove {file} "
                    "to have other ports chosen",
                )
        return ports
    ports = {}
    taken = set(WANTED.values())
    for name, port in WANTED.items():
        if not is_free(port):
            port = _any_free(taken)
            taken.add(port)
        ports[name] = port
    file.write_text(json.dumps(ports, indent=1) + "\n")
    return ports


def _read(file: Path) -> dict[str, int]:
    try:
        found = json.loads(file.read_text())
    except ValueError:
        found = None
    if (
        not isinstance(found, dict)
        or found.keys() != WANTED.keys()
        or not all(isinstance(port, int) and 0 < port < 65536 for port in found.values())
    ):
        raise VsError(
            "VS1071", Kind.INVALID, f"{file} is damaged; remove it to have ports chosen anew"
        )
    return found
