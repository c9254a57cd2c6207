"""Every request that restructures a volume, made while hosts write it, twice round.

Two fio processes write and verify through two SPs; a third writer puts the same stamps into the
volume and into a local copy. fio must end with no error, and the copies must not differ.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.e2e import metrics
from tests.e2e.agree import agree
from tests.e2e.cluster import MIB, Cluster, leaves
from tests.e2e.process import guarded, wait_for
from tests.e2e.stamps import BLOCK, Stamper, Writer

#: fio through sp-a, fio through sp-b, then the stamps.
REGION = 16 * MIB
SIZE = 3 * REGION
GROWTH = 4 * MIB

#: One round: vswitchctl's words, and what the layout must look like afterwards.
ROUND: tuple[tuple[tuple[str, ...], str], ...] = (
    (("volume", "serve", "db", "--on", "sp-c"), ""),
    (("volume", "unserve", "db", "--on", "sp-c"), ""),
    (("volume", "mirror", "add", "db", "--sp", "sp-b"), "mirror"),
    (("volume", "mirror", "remove", "db", "--leg", "sp-b"), "leaf"),
    (("volume", "move", "db", "--from", "sp-a", "--to", "sp-b"), "leaf"),
    (("volume", "move", "db", "--from", "sp-b", "--to", "sp-a"), "leaf"),
    (("volume", "move", "db", "--from", "sp-a", "--to", "sp-c"), "leaf"),
    (("volume", "apply", "db", "--layout", "mirror(sp-a/a0, sp-b/b0)"), "mirror"),
    (("volume", "apply", "db", "--layout", "stripe(sp-a/a0, sp-c/c0, chunk=64K)"), "stripe"),
    (("volume", "apply", "db", "--layout", "concat(sp-b/b0, sp-c/c0)"), "concat"),
    (("volume", "apply", "db", "--layout", "mirror(sp-a/a0, sp-c/c0)"), "mirror"),
    (("volume", "apply", "db", "--layout", "concat(sp-a/a0, sp-b/b0)"), "concat"),
    (("volume", "apply", "db", "--layout", "stripe(sp-b/b0, sp-c/c0, chunk=4K)"), "stripe"),
    (("volume", "apply", "db", "--layout", "mirror(stripe(sp-a, sp-b), sp-c)"), "mirror"),
    (("volume", "apply", "db", "--layout", "sp-a/ab"), "leaf"),
)


@contextmanager
def fio(name: str, uri: str, offset: int, directory: Path) -> Iterator[None]:
    """fio writes and verifies a region for as long as the block runs, then must have no error."""
    report = directory / f"{name}.json"
    argv = (
        *("fio", f"--name={name}", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite"),
        *("--bssplit=4k/70:32k/30", "--serialize_overlap=1", "--fsync=200", "--iodepth=8"),
        *(f"--offset={offset}", f"--size={REGION}", "--rate_iops=2000"),
        *("--verify=crc32c", "--verify_backlog=128", "--verify_fatal=1", "--verify_state_save=0"),
        *("--time_based", "--runtime=1800"),
        *("--output-format=json", f"--output={report}"),
    )
    with (directory / f"{name}.err").open("wb") as err:
        process = subprocess.Popen(guarded(*argv), cwd=directory, stdout=err, stderr=err)
    try:
        yield
        assert process.poll() is None, f"{name} ended early: {report.read_text()[-2000:]}"
        process.send_signal(signal.SIGINT)
        process.wait(180)
    finally:
        process.kill()
        process.wait()
    text = report.read_text()
    job = json.loads(text[text.index("{") :])["jobs"][0]
    assert job["error"] == 0, text[:2000]
    assert job["write"]["total_ios"] > 0 and job["read"]["total_ios"] > 0, text[:2000]


def test_every_request_under_io_twice_round(cluster: Cluster, tmp_path: Path) -> None:
    cluster.ctl("volume", "create", "db", "--size", str(SIZE), "--layout", "sp-a/ab")
    cluster.ctl("volume", "serve", "db", "--on", "sp-b")
    stamper = Stamper(2 * REGION // BLOCK, REGION // BLOCK, seed=2)
    hosts = [(cluster.sps[sp].addresses["--nbd"], "db") for sp in ("sp-a", "sp-b")]
    size = SIZE
    with (
        fio("via-a", cluster.uri("db", "sp-a"), 0, tmp_path),
        fio("via-b", cluster.uri("db", "sp-b"), REGION, tmp_path),
        Writer(stamper, hosts),
    ):
        for turn in range(2):
            for request, kind in ROUND:
                before = stamper.writes
                done = cluster.ctl(*request).json
                assert done["state"] == "OPERATION_STATE_DONE", done
                record = cluster.volume("db").record
                assert not kind or record.root.WhichOneof("kind") == kind, (request, record.root)
                wait_for("writes to go on", partial(stamper.wrote_more_than, before), 10.0)
                assert not stamper.faults, stamper.faults
                assert not stamper.errors, stamper.errors
            size += GROWTH
            cluster.ctl("volume", "grow", "db", "--size", str(size))
            assert cluster.volume("db").record.size == size
            cluster.ctl("volume", "create", f"other{turn}", "--size", "8M")
            cluster.ctl("volume", "delete", f"other{turn}")

    copy = tmp_path / "copy"
    stamper.save(copy)
    for sp in ("sp-a", "sp-b"):
        host, _, port = cluster.sps[sp].addresses["--nbd"].rpartition(":")
        volume = (
            f"driver=raw,offset={2 * REGION},size={REGION},file.driver=nbd,file.export=db,"
            f"file.server.type=inet,file.server.host={host},file.server.port={port}"
        )
        local = f"driver=raw,file.driver=file,file.filename={copy}"
        compared = subprocess.run(
            ["qemu-img", "compare", "--image-opts", volume, local], capture_output=True, text=True
        )
        assert compared.returncode == 0, compared.stdout + compared.stderr
    for sp in ("sp-a", "sp-b"):
        pauses = metrics.samples(
            cluster.sps[sp], "vswitchd_volume_pause_duration_seconds_count", volume="db"
        )
        assert sum(pauses) >= 2 * len(ROUND), f"{sp}: {pauses} pauses in the histogram"
    wait_for("store, SPs and labels to agree", lambda: agree(cluster), 40.0)


def test_a_move_takes_the_objects_home_with_it(shared: Cluster) -> None:
    """Reachable from both: the extents stay. Not reachable: the bytes are copied."""
    shared.ctl("volume", "create", "near", "--size", "16M", "--layout", "sp-a/ab")
    before = shared.volume("near").record
    shared.ctl("volume", "move", "near", "--from", "sp-a", "--to", "sp-b")
    after = shared.volume("near").record
    assert [leaf.home for leaf in leaves(after.root)] == ["sp-b"]
    assert [e for t1 in after.t1s for e in t1.extents] == [
        e for t1 in before.t1s for e in t1.extents
    ]
    shared.ctl("volume", "move", "near", "--from", "sp-b", "--to", "sp-c")
    away = shared.volume("near").record
    assert [leaf.home for leaf in leaves(away.root)] == ["sp-c"]
    assert {t1.t1_id for t1 in away.t1s}.isdisjoint(t1.t1_id for t1 in before.t1s)
    shared.ctl("volume", "delete", "near")
