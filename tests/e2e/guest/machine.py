"""A guest that runs: asked, rebooted, and ended with the test."""

from __future__ import annotations

import itertools
import json
import os
import queue
import re
import socket
import subprocess
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.e2e.guest.image import Image, run
from tests.e2e.process import guarded, wait_for

#: Seconds until the guest must be up: about 20 on an idle machine of two cores.
BOOT = 180.0
#: Seconds that a script has if its test does not say otherwise.
PATIENCE = 120.0
#: Where the guest finds this machine's loopback (QEMU's user network).
OUTSIDE = "10.0.2.2"
#: What the kernel says when I/O has failed, or a filesystem has noticed.
BAD = re.compile(
    r"I/O error|blk_update_request|Buffer I/O|EXT4-fs error|XFS.*(error|Corruption|shut)"
    r"|Remounting filesystem read-only|hung_task|blocked for more than|BUG:|Oops|WARNING:"
)


@dataclass(frozen=True)
class Told:
    """What a script in the guest said and how it ended."""

    status: int
    output: str


class Guest:
    """QEMU with that image. Use as a context manager."""

    #: What is no complaint in this guest.
    spared: re.Pattern[str] | None = None

    def __init__(self, image: Image, directory: Path, *, memory: int = 1024) -> None:
        self._image = image
        self._directory = directory
        self._memory = memory
        self._console = directory / "console.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._ids = itertools.count(1)
        self._asked: dict[int, Future[Told]] = {}
        self._ups: queue.Queue[None] = queue.Queue()
        self._writing = threading.Lock()

    def __enter__(self) -> Guest:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        self._end()
        if error is not None:
            print(f"--- the guest's console\n{self.console()[-8000:]}")

    def _start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        disk, port = self._directory / "root.qcow2", self._directory / "agent.sock"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", self._image.root, disk)
        drive = "driver=raw,file.driver=file,file.read-only=on,read-only=on"
        argv = [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"),
            *("-m", str(self._memory), "-nodefaults", "-display", "none"),
            *("-kernel", str(self._image.kernel), "-initrd", str(self._image.initramfs)),
            *("-append", "console=ttyS0 panic=-1 oops=panic mitigations=off quiet loglevel=5"),
            # Not for keeping: what the guest flushes need not reach this machine's disk.
            *("-drive", f"if=none,id=root,format=qcow2,cache=unsafe,file={disk}"),
            *("-device", "virtio-blk-pci,drive=root"),
            *("-blockdev", f"node-name=product,{drive},file.filename={self._image.product}"),
            *("-device", "virtio-blk-pci,drive=product"),
            *("-chardev", f"file,id=console,path={self._console},append=on"),
            *("-serial", "chardev:console", "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=agent,path={port},server=on,wait=off"),
            *("-device", "virtserialport,chardev=agent,name=agent"),
            *("-nic", "user,model=virtio-net-pci"),
        ]
        with (self._directory / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(
                guarded(*argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._socket = socket.socket(socket.AF_UNIX)
        wait_for("QEMU to listen", lambda: self._connected(port))
        threading.Thread(target=self._listen, args=(self._socket,), daemon=True).start()
        self.wait_up()

    def _connected(self, port: Path) -> bool:
        assert self._process is not None
        assert self._socket is not None
        if self._process.poll() is not None:
            raise RuntimeError((self._directory / "qemu.log").read_text())
        self._socket.connect(str(port))
        return True

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._socket is not None:
            self._socket.close()

    def wait_up(self) -> None:
        """Until the agent says that it is there, after a start or a reboot."""
        try:
            self._ups.get(timeout=BOOT)
        except queue.Empty:
            raise AssertionError(f"no agent after {BOOT:g} s:\n{self.console()[-4000:]}") from None

    def _listen(self, port: socket.socket) -> None:
        waiting = b""
        while True:
            try:
                got = port.recv(1 << 16)
            except OSError:
                got = b""
            if not got:
                for asked in list(self._asked.values()):
                    asked.set_exception(ConnectionError("the guest has ended"))
                return
            waiting += got
            while b"\n" in waiting:
                line, _, waiting = waiting.partition(b"\n")
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            told = json.loads(line)
        except ValueError:
            return  # The end of an answer that a reboot has cut off.
        if told["id"] == 0:
            self._ups.put(None)
        elif asked := self._asked.pop(told["id"], None):
            asked.set_result(Told(told["status"], told["output"]))

    def begin(self, script: str) -> Future[Told]:
        """Has a script run by bash, and returns at once."""
        assert self._socket is not None
        asked: Future[Told] = Future()
        with self._writing:
            number = next(self._ids)
            self._asked[number] = asked
            self._socket.sendall(json.dumps({"id": number, "script": script}).encode() + b"\n")
        return asked

    def run(self, script: str, *, status: int | None = 0, seconds: float = PATIENCE) -> str:
        """A script's output; asserts how it ends (None: in any way)."""
        try:
            told = self.begin(script).result(seconds)
        except TimeoutError:
            raise AssertionError(f"no end after {seconds:g} s: {script}") from None
        assert status is None or told.status == status, (
            f"{script[:1000]}\n-> {told.status}\n{told.output[-8000:]}"
        )
        return told.output

    def reboot(self) -> None:
        """In order, and waits until it is up again."""
        self.begin("systemctl reboot")
        self.wait_up()

    def console(self) -> str:
        """What the kernel and systemd have said."""
        return self._console.read_text(errors="replace") if self._console.exists() else ""

    def kernel_log(self) -> str:
        """Since it was booted last."""
        return self.run("dmesg")

    def assert_well(self) -> None:
        """No I/O error, no complaint of a filesystem, no fault of the kernel."""
        bad = [
            line
            for line in self.kernel_log().splitlines()
            if BAD.search(line) and not (self.spared and self.spared.search(line))
        ]
        assert not bad, "\n".join(bad)


def available() -> str:
    """Why there can be no guest here; empty if there can."""
    if os.geteuid() != 0:
        return "the guest's root is made by root"
    tools = ("qemu-system-x86_64", "debootstrap", "cpio", "mke2fs")
    missing = [
        tool
        for tool in tools
        if not any(
            (Path(place) / tool).exists() for place in ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
        )
    ]
    return f"missing: {' '.join(missing)}; `make deps-test` installs them" if missing else ""
