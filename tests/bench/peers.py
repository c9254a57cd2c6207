"""The servers that ours is measured beside, each over a file of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.bench.work import Target
from tests.e2e.process import guarded, wait_for

REFERENCE = "nbdkit file"
FRONT = "nbdkit nbd"
PLUGIN = Path(__file__).with_name("plugin.py")
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Place:
    """Where one server puts things."""

    directory: Path
    port: int
    #: For one that needs another server behind it.
    behind: int

    @property
    def file(self) -> Path:
        """What it serves."""
        return self.directory / "disk.img"

    @property
    def socket(self) -> Path:
        """Where it listens, beside its port."""
        return self.directory / "socket"

    @property
    def pid_file(self) -> Path:
        """Where one that goes into the background leaves its id."""
        return self.directory / "pid"


Commands = list[list[str]]


def _nbdkit(place: Place, *plugin: str) -> Commands:
    common = ["nbdkit", "-f"]
    unix = [*common, "-U", str(place.socket)]
    tcp = [*common, "-i", HOST, "-p", str(place.port)]
    return [[*command, *plugin] for command in (unix, tcp)]


def _nbdkit_file(place: Place) -> Commands:
    return _nbdkit(place, "file", str(place.file))


def _nbdkit_nbd(place: Place) -> Commands:
    """A volume whose data are elsewhere, as nbdkit does it."""
    file = ["nbdkit", "-f", "-i", HOST, "-p", str(place.behind), "file", str(place.file)]
    return [file, *_nbdkit(place, "nbd", f"hostname={HOST}", f"port={place.behind}", "retry=10")]


def _nbdkit_python(place: Place) -> Commands:
    return _nbdkit(place, "python", str(PLUGIN), f"file={place.file}")


def _qemu_nbd(place: Place) -> Commands:
    image = f"driver=raw,file.driver=file,file.locking=off,file.filename={place.file}"
    common = ["qemu-nbd", "--persistent", "--shared=16", "--image-opts", image]
    return [
        [*common, "-k", str(place.socket)],
        [*common, "-b", HOST, "-p", str(place.port)],
    ]


def _nbd_server(place: Place) -> Commands:
    config = place.directory / "config"
    config.write_text(
        "[generic]\n"
        f"listenaddr = {HOST}\n"
        f"port = {place.port}\n"
        f"unixsock = {place.socket}\n"
        "duallisten = true\n"
        "allowlist = true\n"
        f"[disk]\nexportname = {place.file}\nflush = true\nfua = true\n"
    )
    return [["nbd-server", "-C", str(config), "-p", str(place.pid_file)]]


@dataclass(frozen=True)
class Peer:
    """How one of them is started."""

    name: str
    commands: Callable[[Place], Commands]
    export: str = ""
    #: It has no option to stay in the foreground.
    daemon: bool = False
    #: A command whose success says that all it needs is there.
    probe: tuple[str, ...] = ()


PEERS = [
    Peer(REFERENCE, _nbdkit_file, probe=("nbdkit", "file", "--dump-plugin")),
    Peer(FRONT, _nbdkit_nbd, probe=("nbdkit", "nbd", "--dump-plugin")),
    Peer("nbdkit python", _nbdkit_python, probe=("nbdkit", "python", "--dump-plugin")),
    Peer("qemu-nbd", _qemu_nbd, probe=("qemu-nbd", "--version")),
    Peer("nbd-server", _nbd_server, export="disk", daemon=True),
]


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port = listener.getsockname()[1]
        assert isinstance(port, int)
        return port


def _answers(address: str | tuple[str, int]) -> bool:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as client:
        client.connect(address)
        return client.recv(8) == b"NBDMAGIC"


def check(peer: Peer) -> None:
    """OSError if this peer cannot be measured here."""
    program = peer.probe[0] if peer.probe else peer.name
    if shutil.which(program) is None:
        raise FileNotFoundError(f"{program} is not installed")
    if peer.probe and subprocess.run(peer.probe, capture_output=True).returncode:
        raise FileNotFoundError(f"`{' '.join(peer.probe)}` fails")


def start(peer: Peer, root: Path, size: int, ends: ExitStack) -> Target:
    """Starts a peer over a new file; `ends` ends its processes."""
    directory = root / peer.name.replace(" ", "-")
    directory.mkdir()
    place = Place(directory, free_port(), free_port())
    with place.file.open("wb") as file:
        file.truncate(size)
    pids = []
    for command in peer.commands(place):
        with (directory / "log").open("ab") as log:
            process = subprocess.Popen(
                guarded(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        if peer.daemon:
            process.wait(10)
            pids.append(wait_for(f"the pid of {peer.name}", lambda: _pid(place.pid_file), 10))
            ends.callback(_end_daemon, pids[-1])
        else:
            pids.append(process.pid)
            ends.callback(end, process)
    wait_for(f"{peer.name} at its socket", lambda: _answers(str(place.socket)), 10)
    wait_for(f"{peer.name} at its port", lambda: _answers((HOST, place.port)), 10)
    return Target(
        peer.name,
        str(place.socket),
        f"{HOST}:{place.port}",
        peer.export,
        tuple(pids),
        (place.file,),
    )


def _pid(file: Path) -> int:
    return int(file.read_text())


def end(process: subprocess.Popen[bytes], patience: float = 5) -> None:
    """Ends a server, after so many seconds by force."""
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_daemon(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
