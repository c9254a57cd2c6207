"""A write that hangs in the network between a host and an SP must not land over what the host has
written since over another path: with the network cut between them, and real TCP.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from tests.e2e.cluster import MIB, Cluster
from tests.e2e.nbd import WRITE, Client
from tests.e2e.network import HERE, Network, ip
from tests.e2e.process import ROOT, guarded, wait_for
from vswitchd.config import Host
from vswitchd.host import handshake

SPS = ("sp-a", "sp-b")
#: States of a TCP socket in which it may still send what it has (net/tcp_states.h).
ESTABLISHED, FIN_WAIT1 = 1, 4
#: Bytes that hang behind the write.
BEHIND = 128 << 10
TIMEOUT = Host().timeout_seconds
#: As over a longer way: what hangs is sent again 0.3, 0.9, 2.1 and 4.5 s later, of which the last
#: is after the host has gone on.
RTO_MIN = ("rto_min", "300ms")


class Link(Client):
    """A connection as the host's service gives it to the kernel."""

    def __init__(self, address: str, export: str) -> None:
        self.socket, found = handshake.connect(address, export, TIMEOUT)
        self.socket.settimeout(60.0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * BEHIND)
        self.handle, self.size, self.flags = 0, found.size, found.flags

    def sends(self) -> bool:
        """Whether it may still send what it has been given."""
        info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)
        return info[0] in (ESTABLISHED, FIN_WAIT1)


def test_a_write_stuck_in_the_network_does_not_land_over_a_newer_one(tmp_path: Path) -> None:
    argv = ["unshare", "--net", sys.executable, "-m", "tests.e2e.test_stuck", str(tmp_path)]
    done = subprocess.run(
        guarded(*argv), cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def block(number: int) -> bytes:
    """A block of that version."""
    return struct.pack(">Q", number) * 512


def main(root: Path) -> None:
    """In a network namespace that is this process's own."""
    with Network("controller", *SPS) as network:
        ip("route", "change", "10.77.0.0/24", "dev", "br0", "src", "10.77.0.1", *RTO_MIN)
        cluster = Cluster(root / "cluster", SPS, network)
        with cluster:
            for sp in SPS:
                cluster.add_device(sp, sp)
            words = ("--size", "16M", "--layout", "mirror(sp-a, sp-b)", "--on", ",".join(SPS))
            cluster.ctl("volume", "create", "v", *words)
            for owner in SPS:
                cluster.ctl("volume", "owner", "v", "--on", owner)
                stuck(cluster, network)


def stuck(cluster: Cluster, network: Network) -> None:
    """The path to sp-a hangs with a write on it; the host goes on over sp-b, as nbd.ko does."""
    addresses = [cluster.sps[sp].addresses["--nbd"] for sp in SPS]
    with ExitStack() as ends:
        one, other = (Link(address, "v") for address in addresses)
        ends.callback(one.socket.close)
        ends.enter_context(other)
        one.write(0, block(1))
        with network.cut((HERE, "sp-a")):
            one.send(WRITE, 0, 4096, block(2))
            # So much that its connection's end comes some round trips later.
            one.send(WRITE, MIB, BEHIND, bytes(BEHIND))
            # nbd.ko, when the request's time is over: the connection ends, another is taken.
            time.sleep(TIMEOUT)
            with contextlib.suppress(OSError):
                one.socket.shutdown(socket.SHUT_RDWR)
            other.write(0, block(2))
            other.write(0, block(3))
            other.write(MIB, bytes(BEHIND))
        wait_for("the stuck path to be done", lambda: not one.sends(), 60)
        assert other.read(0, 4096) == block(3)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
