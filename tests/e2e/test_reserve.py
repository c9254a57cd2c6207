"""Reservations of a volume that several SPs serve over iSCSI, while these are killed and the owner
moves; and what initiators are told of the portals.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.iscsi import (
    CONFLICT,
    PREEMPT,
    REGISTER,
    RELEASE,
    RESERVE,
    WRITE_EXCLUSIVE,
    Initiator,
    SenseError,
    StatusError,
)
from tests.e2e.lost import SOON, in_sync
from tests.e2e.process import wait_for

ACCESS_CHANGED = (6, 0x2A06)


def portal(cluster: Cluster, sp: str) -> str:
    return cluster.sps[sp].addresses["--iscsi"]


@contextmanager
def conflict() -> Iterator[None]:
    with pytest.raises(StatusError) as refused:
        yield
    assert refused.value.status == CONFLICT


def create(cluster: Cluster) -> None:
    words = ("--size", "64M", "--layout", "mirror(sp-a/a0, sp-b/b0)", "--on", "sp-a,sp-b")
    cluster.ctl("volume", "create", "db", *words)
    assert cluster.volume("db").record.owner == "sp-a"


@pytest.mark.timeout(180)
def test_a_reservation_outlives_the_owner_that_it_was_made_at(cluster: Cluster) -> None:
    create(cluster)
    owner = cluster.sps["sp-a"]
    with Initiator(portal(cluster, "sp-b"), "db", "iqn.2026-11.test:other") as other:
        with Initiator(portal(cluster, "sp-a"), "db") as host:
            host.ready()
            other.ready()
            host.reserve_out(REGISTER, other=7)
            host.reserve_out(RESERVE, WRITE_EXCLUSIVE, key=7)
            host.write(0, b"h" * 512)
            with conflict():
                other.write(0, b"o" * 512)
            owner.kill()
        wait_for("a takeover", lambda: cluster.volume("db").record.owner == "sp-b", SOON)
        told = []

        def allowed() -> bool:
            try:
                other.run(bytes(6))
            except SenseError as error:
                told.append((error.key, error.code))
                return False
            return True

        wait_for("the unit to be ready", allowed)
        assert ACCESS_CHANGED in told
        with conflict():
            other.write(0, b"o" * 512)
        assert other.read(0, 1) == b"h" * 512
        assert other.keys() == [7]
        owner.start()
        in_sync(cluster, "db", 2)
        with Initiator(portal(cluster, "sp-a"), "db") as host:
            host.ready()
            # The same ports, registered as before.
            host.write(0, b"i" * 512)
            assert host.port_groups() == {1: 1, 2: 0}
            other.reserve_out(REGISTER, other=8)
            other.reserve_out(PREEMPT, WRITE_EXCLUSIVE, key=8, other=7)
            host.ready()
            with conflict():
                host.write(0, b"h" * 512)
            other.write(0, b"o" * 512)
            other.reserve_out(RELEASE, WRITE_EXCLUSIVE, key=8)
            host.write(0, b"j" * 512)


def test_every_portal_tells_of_the_others_and_of_the_owner(cluster: Cluster) -> None:
    create(cluster)
    with (
        Initiator(portal(cluster, "sp-a"), "db") as one,
        Initiator(portal(cluster, "sp-b"), "db") as other,
    ):
        for host in (one, other):
            host.ready()
            wait_for("both to be known", lambda host=host: host.port_groups() == {1: 0, 2: 1})  # type: ignore[misc]
        cluster.ctl("volume", "owner", "db", "--on", "sp-b")
        for host in (one, other):
            with pytest.raises(SenseError) as told:
                host.run(bytes(6))
            assert (told.value.key, told.value.code) == ACCESS_CHANGED
            wait_for("the states", lambda host=host: host.port_groups() == {1: 1, 2: 0})  # type: ignore[misc]
    for sp in ("sp-a", "sp-b"):
        argv = ["iscsi-ls", "-s", f"iscsi://{portal(cluster, sp)}"]
        listed = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout
        for tag, of in ((1, "sp-a"), (2, "sp-b")):
            assert f"Portal:{portal(cluster, of)},{tag}" in listed, listed
