"""SPs that are killed, stopped and brought back while hosts write to mirrors: nobody gets an error,
nothing acknowledged is lost, and a leg that comes back is copied only what it has missed."""

from __future__ import annotations

import os
import signal

from tests.e2e.cluster import MIB, Cluster
from tests.e2e.disk import disks
from tests.e2e.lost import SOON, Pulse, in_sync, mirrored, states, whole_again
from tests.e2e.metrics import samples
from tests.e2e.nbd import READ, Client
from tests.e2e.process import wait_for
from tests.e2e.stamps import Stamper, Writer

SIZE = 64 * MIB


def moved(cluster: Cluster, volume: str) -> float:
    """Bytes that copies and resyncs of the volume have written."""
    return sum(
        sum(samples(sp, "vswitchd_volume_copied_bytes_total", volume=volume))
        for sp in cluster.sps.values()
    )


def test_a_leg_is_lost_and_comes_back(cluster: Cluster) -> None:
    leg = cluster.sps["sp-b"]
    with mirrored(cluster, "mirror(sp-a/a0, sp-b/b0)", "sp-a"):
        with Pulse(cluster.sps["sp-a"].addresses["--nbd"], "db") as host:
            leg.kill()
            wait_for("the leg to be left behind", lambda: states(cluster, "db")[1] == "away", SOON)
            assert host.goes_on()
            print(f"a leg was killed: the longest write took {host.longest:.2f} s")
            health = [check.code for check in cluster.status().checks]
            assert "SP_DOWN" in health, health
            leg.start()
            whole_again(cluster, "db")
            assert host.goes_on()
        # 256 blocks lie in one region; what was dirty before may be copied as well.
        assert 0 < moved(cluster, "db") <= 8 * MIB
        assert "guardian" in cluster.ctl("volume", "history", "db").out


def test_a_large_leg_is_copied_what_it_missed_and_little_more(cluster: Cluster) -> None:
    """10 GiB, of which 100 MiB are written, all over it."""
    for sp in ("sp-a", "sp-b"):
        cluster.add_device(sp, f"large-{sp}", 11 << 30)
    layout = "mirror(sp-a/large-sp-a, sp-b/large-sp-b)"
    cluster.ctl("volume", "create", "big", "--size", "10G", "--layout", layout, "--on", "sp-a")
    leg = cluster.sps["sp-b"]
    with Client(cluster.sps["sp-a"].addresses["--nbd"], "big") as client:
        client.write(5 << 30, b"before" * 1000)
        leg.kill()
        wait_for("the leg to be left behind", lambda: states(cluster, "big")[1] == "away", SOON)
        data = bytes(range(256)) * 4096
        for region in range(100):
            client.write(region * 100 * MIB, data)
    leg.start()
    in_sync(cluster, "big", 2)
    assert 100 * MIB <= moved(cluster, "big") <= 110 * MIB


def test_an_owner_is_lost_and_hosts_elsewhere_go_on(cluster: Cluster) -> None:
    owner = cluster.sps["sp-a"]
    with (
        mirrored(cluster, "mirror(sp-a/a0, sp-b/b0)", "sp-a,sp-b"),
        Pulse(cluster.sps["sp-b"].addresses["--nbd"], "db") as host,
    ):
        assert cluster.volume("db").record.owner == "sp-a"
        owner.kill()
        wait_for("a takeover", lambda: cluster.volume("db").record.owner == "sp-b", SOON)
        assert host.goes_on()
        print(f"an owner was killed: the longest write took {host.longest:.2f} s")
        owner.start()
        whole_again(cluster, "db")
        assert host.goes_on()


def test_the_owner_moves_under_load(cluster: Cluster) -> None:
    with (
        mirrored(cluster, "mirror(sp-a/a0, sp-b/b0)", "sp-a,sp-b,sp-c"),
        Pulse(cluster.sps["sp-c"].addresses["--nbd"], "db") as host,
        Pulse(cluster.sps["sp-a"].addresses["--nbd"], "db") as other,
    ):
        for sp in ("sp-b", "sp-c", "sp-a"):
            cluster.ctl("volume", "owner", "db", "--on", sp)
            assert cluster.volume("db").record.owner == sp
            assert host.goes_on() and other.goes_on()
        print(f"the owner moved: the longest write took {max(host.longest, other.longest):.2f} s")
        refused = cluster.ctl("volume", "unserve", "db", "--on", "sp-b")
        refused = cluster.ctl("volume", "owner", "db", "--on", "sp-b", status=None)
        assert refused.status and "VS2015" in refused.err, str(refused)


def test_an_owner_that_was_stopped_reads_nothing_old(cluster: Cluster) -> None:
    owner = cluster.sps["sp-a"]
    with mirrored(cluster, "mirror(sp-a/a0, sp-b/b0)", "sp-a,sp-b"):
        block = b"old" + bytes(4093)
        with (
            Client(owner.addresses["--nbd"], "db") as there,
            Client(cluster.sps["sp-b"].addresses["--nbd"], "db") as here,
        ):
            there.write(0, block)
            os.kill(owner.pid, signal.SIGSTOP)
            try:
                newer = b"new" + bytes(4093)
                here.write(0, newer)
                there.send(READ, 0, 4096)
            finally:
                os.kill(owner.pid, signal.SIGCONT)
            assert there.answer(4096) == newer
        whole_again(cluster, "db")


def test_a_device_fails_and_works_again(cluster: Cluster) -> None:
    with disks(cluster.root, bad={}) as made:
        bad = made["bad"]
        cluster.ctl("device", "add", bad.uri, "--sp", "sp-b", "--name", "bad")
        with (
            mirrored(cluster, "mirror(sp-a/a0, sp-b/bad)", "sp-a,sp-c"),
            Pulse(cluster.sps["sp-a"].addresses["--nbd"], "db") as host,
            Pulse(cluster.sps["sp-c"].addresses["--nbd"], "db") as other,
        ):
            for what, trouble in (("failed", bad.fails), ("stalled", bad.stalls)):
                host.longest = 0.0
                with trouble():
                    away = lambda: states(cluster, "db")[1] == "away"  # noqa: E731
                    wait_for("its leg to be left behind", away, SOON)
                    assert host.goes_on() and other.goes_on()
                    print(f"a device {what}: the longest write took {host.longest:.2f} s")
                in_sync(cluster, "db", 2)
                assert host.goes_on() and other.goes_on()


def test_what_a_device_cannot_read_is_healed(cluster: Cluster) -> None:
    with disks(cluster.root, bad={}) as made:
        cluster.ctl("device", "add", made["bad"].uri, "--sp", "sp-b", "--name", "bad")
        # No leg is where the owner is, so that both are read from.
        layout = "mirror(sp-a/a0, sp-b/bad)"
        with (
            mirrored(cluster, layout, "sp-c"),
            Pulse(cluster.sps["sp-c"].addresses["--nbd"], "db") as host,
            Client(cluster.sps["sp-c"].addresses["--nbd"], "db") as reader,
        ):

            def healed() -> bool:
                reader.read(0, 4096)
                name = "vswitchd_volume_healed_bytes_total"
                return sum(samples(cluster.sps["sp-c"], name, volume="db")) >= 4096

            with made["bad"].unreadable():
                wait_for("a repair", healed, SOON)
            assert host.goes_on()
            assert states(cluster, "db") == ["in_sync", "in_sync"]


def test_stamps_survive_losses_in_turn(cluster: Cluster) -> None:
    with mirrored(cluster, "mirror(sp-a/a0, sp-b/b0, sp-c/c0)", "sp-a,sp-b,sp-c"):
        addresses = [(cluster.sps[sp].addresses["--nbd"], "db") for sp in ("sp-b", "sp-c")]
        with Writer(Stamper(0, SIZE // 4096, 7), addresses, keep=False) as stamper:
            for name in ("sp-a", "sp-b", "sp-c", "sp-a"):
                sp = cluster.sps[name]
                since = stamper.writes
                wait_for("stamps", lambda: stamper.wrote_more_than(since + 50), SOON)  # noqa: B023
                sp.kill()
                wait_for(f"{name} to be left behind", lambda: "away" in states(cluster, "db"), SOON)
                sp.start()
                whole_again(cluster, "db", 3)
        with Client(*addresses[0]) as client:
            stamper.check_all(client)
