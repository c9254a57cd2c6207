"""tgt, Debian's iSCSI target in user space, over a file of its own through the page cache (`rdwr`),
its write cache on: what our volumes do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

from tests.bench.peers import HOST, end, free_port
from tests.bench.work import Target
from tests.e2e.process import guarded, wait_for

NAME = "tgt"
TARGET = "iqn.2026-11.test:disk"
#: Its own values are for disks: with 8 KiB in a PDU, each 128 KiB would be asked for in parts.
AGREED = {
    "MaxRecvDataSegmentLength": 262144,
    "FirstBurstLength": 262144,
    "MaxBurstLength": 1048576,
    "ImmediateData": "Yes",
}


def _told(control: int, *argv: str) -> None:
    """One command of tgtadm's."""
    subprocess.run(
        ["tgtadm", "-C", str(control), "--lld", "iscsi", *argv],
        check=True,
        capture_output=True,
        timeout=10,
    )


def _listens(control: int) -> bool:
    try:
        _told(control, "--op", "show", "--mode", "target")
    except subprocess.CalledProcessError:
        return False
    return True


def start(root: Path, size: int, ends: ExitStack) -> Target:
    """Starts tgtd; `ends` ends it. OSError if it is not installed."""
    for program in ("tgtd", "tgtadm"):
        if shutil.which(program) is None:
            raise FileNotFoundError(f"{program} is not installed")
    directory = root / NAME
    directory.mkdir()
    file = directory / "disk.img"
    with file.open("wb") as made:
        made.truncate(size)
    port = free_port()
    # Its control socket's number: another one runs beside it.
    control = 1 + os.getpid() % 32000
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            guarded("tgtd", "-f", "-C", str(control), "--iscsi", f"portal={HOST}:{port}"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    # It does not end while it has a target; nothing that it has is worth its goodbye.
    ends.callback(end, process, patience=0.5)
    wait_for("tgtd to be told", lambda: _listens(control), 10)
    target = ("--mode", "target", "--tid", "1")
    _told(control, "--op", "new", *target, "-T", TARGET)
    for key, value in AGREED.items():
        _told(control, "--op", "update", *target, "--name", key, "--value", str(value))
    unit = ("--mode", "logicalunit", "--tid", "1", "--lun", "1")
    _told(control, "--op", "new", *unit, "--bstype", "rdwr", "-b", str(file))
    _told(control, "--op", "bind", *target, "-I", "ALL")
    return Target(
        NAME,
        "",
        "",
        "",
        (process.pid,),
        (file,),
        iscsi=f"iscsi:{HOST}:{port}",
        unit=f"{TARGET}/1",
    )
