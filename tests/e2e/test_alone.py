"""The controller is away while a leg is lost: of three legs the owner leaves one behind by itself,
of two it waits. When the controller is back it learns what has come to pass, and the leg catches
up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from tests.e2e.cluster import Cluster
from tests.e2e.disk import disks
from tests.e2e.lost import SOON, Pulse, alike, in_sync, mirrored, states, whole_again
from tests.e2e.nbd import Client
from tests.e2e.process import Daemon, wait_for
from tests.e2e.stamps import Stamper, Writer
from vswitchd.rpc import vsm_pb2


class Known:
    """What SPs can be asked without the controller."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._caller = cluster.caller()

    def view(self, sp: str) -> vsm_pb2.View:
        stub, channel = self._cluster.vsm(sp)
        with channel:
            try:
                return stub.GetView(vsm_pb2.GetViewRequest(caller=self._caller), timeout=10.0)
            except grpc.RpcError as error:
                raise ConnectionError(str(error)) from error

    def epoch(self, sp: str) -> int:
        """Of the one volume's tree that is active there."""
        return max(held.t2.epoch for held in self.view(sp).t2s if held.active)


@contextmanager
def away(controller: Daemon) -> Iterator[None]:
    controller.kill()
    try:
        yield
    finally:
        controller.start()


def learnt(cluster: Cluster, owner: str) -> None:
    history = cluster.ctl("volume", "history", "db").out
    assert f"left behind by {owner} while the controller was away" in history, history


def test_three_legs_lose_one_without_the_controller(cluster: Cluster) -> None:
    leg = cluster.sps["sp-b"]
    with (
        mirrored(cluster, "mirror(sp-a/a0, sp-b/b0, sp-c/c0)", "sp-a,sp-c"),
        Pulse(cluster.sps["sp-a"].addresses["--nbd"], "db") as host,
        Pulse(cluster.sps["sp-c"].addresses["--nbd"], "db") as other,
    ):
        known = Known(cluster)
        with away(cluster.controller):
            leg.kill()
            wait_for("the owner to go on", lambda: known.epoch("sp-a") > 1, SOON)
            assert host.goes_on() and other.goes_on()
            assert known.epoch("sp-c") == known.epoch("sp-a")
            print(
                "a leg was killed while the controller was away: the longest write took "
                f"{host.longest:.2f} s at its owner, {other.longest:.2f} s elsewhere"
            )
        wait_for("the store to learn it", lambda: states(cluster, "db")[1] == "away", SOON)
        learnt(cluster, "sp-a")
        leg.start()
        whole_again(cluster, "db", 3)
        assert host.goes_on() and other.goes_on()
        alike(cluster, "db")
        assert not known.view("sp-a").ejections, "what the store knows is not told any more"


def test_a_device_stalls_without_the_controller(cluster: Cluster) -> None:
    with disks(cluster.root, bad={}) as made:
        bad = made["bad"]
        cluster.ctl("device", "add", bad.uri, "--sp", "sp-b", "--name", "bad")
        with (
            mirrored(cluster, "mirror(sp-a/a0, sp-b/bad, sp-c/c0)", "sp-a,sp-b"),
            Pulse(cluster.sps["sp-a"].addresses["--nbd"], "db") as host,
            Pulse(cluster.sps["sp-b"].addresses["--nbd"], "db") as other,
        ):
            with bad.stalls():
                with away(cluster.controller):
                    assert host.goes_on() and other.goes_on()
                    print(
                        "a device stalled while the controller was away: the longest write took "
                        f"{max(host.longest, other.longest):.2f} s"
                    )
                wait_for("the store to learn it", lambda: "away" in states(cluster, "db"), SOON)
                learnt(cluster, "sp-a")
            in_sync(cluster, "db", 3)
            assert host.goes_on() and other.goes_on()
            alike(cluster, "db")


def test_an_owner_that_dies_in_it_goes_on_with_it(cluster: Cluster) -> None:
    """It restarts while the controller is still away; what was acknowledged is there."""
    owner, leg = cluster.sps["sp-a"], cluster.sps["sp-b"]
    with mirrored(cluster, "mirror(sp-a/a0, sp-b/b0, sp-c/c0)", "sp-a"):
        known = Known(cluster)
        connect = [(owner.addresses["--nbd"], "db")]
        with Writer(Stamper(0, 4096, 11), connect, keep=False) as stamper:
            wait_for("writes", lambda: stamper.wrote_more_than(50))
            with away(cluster.controller):
                leg.kill()
                wait_for("the owner to go on", lambda: known.epoch("sp-a") > 1, SOON)
                owner.kill()
                owner.start()
                since = stamper.writes
                wait_for("writes", lambda: stamper.wrote_more_than(since + 50), SOON)
            wait_for("the store to learn it", lambda: states(cluster, "db")[1] == "away", SOON)
            leg.start()
            whole_again(cluster, "db", 3)
        assert not stamper.faults and not stamper.errors
        with Client(owner.addresses["--nbd"], "db") as client:
            stamper.check_all(client)


def test_two_legs_wait_for_the_controller(cluster: Cluster) -> None:
    leg, owner = cluster.sps["sp-b"], cluster.sps["sp-a"]
    with (
        mirrored(cluster, "mirror(sp-a/a0, sp-b/b0)", "sp-a"),
        Pulse(owner.addresses["--nbd"], "db") as host,
    ):
        known = Known(cluster)
        with away(cluster.controller):
            leg.kill()
            # By then an owner of three legs would go on at its next look.
            wait_for("the leg to be blamed", lambda: "does not answer" in owner.tail(), SOON)
            since = host.written
            assert not known.view("sp-a").ejections and known.epoch("sp-a") == 1
        wait_for("the leg to be left behind", lambda: states(cluster, "db")[1] == "away", SOON)
        assert host.goes_on()
        print(f"two legs, no controller: {since} writes, then one of {host.longest:.2f} s")
        history = cluster.ctl("volume", "history", "db").out
        assert "while the controller was away" not in history
        leg.start()
        whole_again(cluster, "db")
