"""A network of namespaces that can be cut, one way too: each node has one of its own, with a veth
to a bridge in the namespace of the test, which is one of its own as well (`unshare --net`).

A way is cut by a permanent wrong neighbour: what is sent to that address leaves, and reaches
nobody, as behind a broken switch. Nobody is told.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.e2e.process import guarded, wait_for

#: Among the nodes, the namespace of the test itself: a host.
HERE = ""
#: Of nobody.
NOWHERE = "02:00:00:00:00:ff"


def ip(*words: str, within: int | None = None) -> None:
    """Runs ip, in the namespace of that process."""
    inside = ["nsenter", "--target", str(within), "--net"] if within else []
    subprocess.run([*inside, "ip", *words], check=True, timeout=30)


class Network:
    """Nodes by name."""

    def __init__(self, *names: str) -> None:
        self.addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, 10)}
        self._holders: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Network:
        try:
            self._lay()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # The namespaces end with their last process, and the veths with them.
        for holder in self._holders.values():
            holder.kill()
            holder.wait()

    def _lay(self) -> None:
        ip("link", "set", "lo", "up")
        ip("link", "add", "br0", "type", "bridge")
        ip("link", "set", "br0", "up")
        ip("address", "add", "10.77.0.1/24", "dev", "br0")
        for number, (name, address) in enumerate(self.addresses.items()):
            holder = subprocess.Popen(guarded("unshare", "--net", "sleep", "infinity"))
            self._holders[name] = holder
            wait_for(f"{name}'s namespace", partial(_is_apart, holder.pid))
            end = ("peer", "name", "eth0", "netns", str(holder.pid))
            ip("link", "add", f"v{number}", "type", "veth", *end)
            ip("link", "set", f"v{number}", "master", "br0", "up")
            ip("link", "set", "lo", "up", within=holder.pid)
            ip("link", "set", "eth0", "up", within=holder.pid)
            ip("address", "add", f"{address}/24", "dev", "eth0", within=holder.pid)

    def within(self, name: str) -> list[str]:
        """What a command begins with that runs at that node."""
        return ["nsenter", "--target", str(self._holders[name].pid), "--net", "--"]

    @contextmanager
    def cut(self, *ways: tuple[str, str]) -> Iterator[None]:
        """While in the block nothing gets from the first of each pair to the second. `HERE` is the
        namespace of the test."""
        for way in ways:
            self._set(way, cut=True)
        try:
            yield
        finally:
            for way in ways:
                self._set(way, cut=False)

    def _set(self, way: tuple[str, str], *, cut: bool) -> None:
        start, end = way
        pid = None if start == HERE else self._holders[start].pid
        to = (self.addresses[end], "dev", "br0" if start == HERE else "eth0")
        if cut:
            state = ("lladdr", NOWHERE, "nud", "permanent")
            ip("neighbour", "replace", *to, *state, within=pid)
        else:
            ip("neighbour", "delete", *to, within=pid)


def _is_apart(pid: int) -> bool:
    """The process has a network namespace of its own by now."""
    return Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
