"""What each command asks of the controller, how it ends, and what it prints."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.cli.conftest import Ctl
from tests.cli.fake import Fake
from tests.cli.samples import (
    DONE,
    GIB,
    RUNNING,
    device,
    operation,
    planned,
    processor,
    volume,
)
from vswitchd.errors import Kind, VsError
from vswitchd.errors_text import EXPLAIN
from vswitchd.rpc import cluster_pb2

MUTATIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("create db1 --size 20G", "CreateVolume", {"name": "db1", "size": 20 * GIB}),
    (
        "create db1 --size 20G --on sp-a,sp-b",
        "CreateVolume",
        {"serving": ["sp-a", "sp-b"], "place_on": ["sp-a", "sp-b"], "layout": ""},
    ),
    (
        "create db1 --layout mirror(sp-a:1G,sp-b) --on sp-c",
        "CreateVolume",
        {"layout": "mirror(sp-a:1G,sp-b)", "serving": ["sp-c"], "place_on": [], "size": 0},
    ),
    (
        "create db1 --size 20G --mirrors 2 --stripes 3",
        "CreateVolume",
        {"layout": "mirror(2, stripe(3))"},
    ),
    ("create db1 --size 20G --mirrors 2", "CreateVolume", {"layout": "mirror(2)"}),
    ("create db1 --size 20G --stripes 3", "CreateVolume", {"layout": "stripe(3)"}),
    ("delete db1", "DeleteVolume", {"name": "db1"}),
    ("grow db1 --size 1.5T", "GrowVolume", {"name": "db1", "size": 1536 * GIB}),
    (
        "move db1 --from sp-a --to sp-b",
        "MoveVolume",
        {"name": "db1", "from_sp": "sp-a", "to_sp": "sp-b", "t1_id": ""},
    ),
    ("move db1 --from sp-a --to sp-b --t1 t-01", "MoveVolume", {"t1_id": "t-01"}),
    ("serve db1 --on sp-c", "ServeVolume", {"name": "db1", "sp": "sp-c"}),
    ("unserve db1 --on sp-c", "UnserveVolume", {"name": "db1", "sp": "sp-c"}),
    ("owner db1 --on sp-c", "SetVolumeOwner", {"name": "db1", "sp": "sp-c"}),
    (
        "apply db1 --layout stripe(2)",
        "ChangeLayout",
        {"name": "db1", "layout": "stripe(2)"},
    ),
    ("mirror add db1", "AddMirrorLeg", {"name": "db1", "sp": "", "layout": ""}),
    (
        "mirror add db1 --sp sp-c --layout stripe(2)",
        "AddMirrorLeg",
        {"sp": "sp-c", "layout": "stripe(2)"},
    ),
    ("mirror remove db1 --leg sp-b", "RemoveMirrorLeg", {"name": "db1", "leg": "sp-b"}),
    ("mirror verify db1 --repair", "VerifyMirror", {"name": "db1", "repair": True}),
]


@pytest.mark.parametrize(("words", "method", "fields"), MUTATIONS)
def test_a_mutation_asks_for_what_was_said(
    fake: Fake, ctl: Ctl, words: str, method: str, fields: dict[str, Any]
) -> None:
    fake.starts = operation()
    argv = ["volume", *words.split(" ")]
    ran = ctl(*argv, "--no-wait", "--request-id", "mine")
    assert (ran.status, ran.out, ran.err) == (0, "op-1\n", "")
    asked, request = fake.started()
    assert asked == method
    assert {name: getattr(request, name) for name in fields} == fields
    assert (request.request_id, request.dry_run) == ("mine", False)


@pytest.mark.parametrize("words", [words for words, _, _ in MUTATIONS])
def test_every_mutation_has_a_dry_run_that_prints_the_plan(
    fake: Fake, ctl: Ctl, words: str
) -> None:
    fake.starts = planned()
    fake.devices = [device("disk3", "id-3")]
    ran = ctl("volume", *words.split(" "), "--dry-run")
    assert ran.status == 0
    assert fake.started()[1].dry_run
    assert ran.out.splitlines() == [
        "db1: sp-a/disk0:20G -> mirror(sp-a/disk0:20G, sp-b/disk3:20G)   tree version 12 -> 14",
        "step                            where       copy  redundancy  expected pause",
        "1     reserve and zero extents  sp-b        -     1           -",
        "2-3   switch over               sp-a, sp-b  -     1           < 20 ms",
        "4     copy                      sp-a        20G   1           -",
        "reserves  20G on sp-b/disk3",
        "copies    20G, about 3 min at 100 MiB/s",
        "cancel    until step 3 is done",
        "undo      volume restore db1 --version 12",
        "apply     vswitchctl volume apply db1 --plan op-7",
    ]


def test_limits_go_with_every_mutation(fake: Fake, ctl: Ctl) -> None:
    fake.starts = operation()
    words = ["--rate", "100M", "--priority", "9", "--no-adaptive", "--no-wait"]
    assert ctl("volume", "mirror", "add", "db1", *words).status == 0
    options = fake.started()[1].options
    assert (options.bytes_per_second, options.priority, options.adaptive) == (100 << 20, 9, False)


def test_a_plan_is_applied_by_its_id(fake: Fake, ctl: Ctl) -> None:
    fake.starts = operation()
    assert ctl("volume", "apply", "db1", "--plan", "op-7", "--no-wait").status == 0
    method, request = fake.started()
    assert (method, request.name, request.plan_id) == ("ApplyPlan", "db1", "op-7")
    assert request.request_id
    for wrong in ([], ["--plan", "op-7", "--layout", "any"], ["--plan", "op-7", "--dry-run"]):
        assert ctl("volume", "apply", "db1", *wrong).status == 2


def test_a_plan_that_is_stale_is_a_precondition(fake: Fake, ctl: Ctl) -> None:
    fake.starts = VsError("VS3075", Kind.STALE, "made for another version")
    assert ctl("volume", "apply", "db1", "--plan", "op-7").status == 4


@pytest.mark.parametrize(
    ("words", "method", "fields"),
    [
        ("pause op-1", "PauseOperation", {}),
        ("resume op-1", "ResumeOperation", {}),
        ("cancel op-1", "CancelOperation", {}),
        ("throttle op-1 --rate 50M", "ThrottleOperation", {"bytes_per_second": 50 << 20}),
        ("throttle op-1 --rate none", "ThrottleOperation", {"bytes_per_second": 0}),
        ("throttle op-1 --priority 8", "ThrottleOperation", {"priority": 8}),
        ("throttle op-1 --no-adaptive", "ThrottleOperation", {"adaptive": False}),
    ],
)
def test_operations_are_told(
    fake: Fake, ctl: Ctl, words: str, method: str, fields: dict[str, Any]
) -> None:
    fake.operations["op-1"] = [operation()]
    assert ctl("operation", *words.split(" ")).status == 0
    asked, request = fake.started()
    assert (asked, request.operation_id) == (method, "op-1")
    said = {field.name for field, _ in request.ListFields()} - {"operation_id"}
    assert {name: getattr(request, name) for name in said | set(fields)} == fields


def test_a_throttle_that_says_nothing_is_refused(fake: Fake, ctl: Ctl) -> None:
    fake.operations["op-1"] = [operation()]
    assert ctl("operation", "throttle", "op-1").status == 2


def test_a_drain_waits_until_the_sp_is_empty(fake: Fake, ctl: Ctl) -> None:
    fake.processors = [processor("sp-a")]
    ran = ctl("sp", "drain", "sp-a", "--keep-serving")
    assert ran.status == 0 and "2 volumes left on sp-a" in ran.err
    method, request = fake.started()
    assert (method, request.sp, request.keep_serving) == ("DrainProcessor", "sp-a", True)
    fake.asked.clear()
    assert ctl("sp", "undrain", "sp-a").status == 0
    assert fake.started()[0] == "UndrainProcessor"


def test_plan_is_the_dry_run_of_apply(fake: Fake, ctl: Ctl) -> None:
    fake.starts = operation(name="")
    assert ctl("volume", "plan", "db1", "--layout", "stripe(2)").status == 0
    method, request = fake.started()
    assert (method, request.layout, request.dry_run) == ("ChangeLayout", "stripe(2)", True)


def test_requests_without_an_id_of_their_own_differ(fake: Fake, ctl: Ctl) -> None:
    fake.starts = operation()
    for _ in range(2):
        ctl("volume", "delete", "db1", "--no-wait")
    first, second = (request.request_id for _, request in fake.asked)
    assert first and second and first != second


STATUSES = {
    Kind.INTERNAL: 1,
    Kind.INVALID: 2,
    Kind.NOT_FOUND: 3,
    Kind.EXISTS: 4,
    Kind.PRECONDITION: 4,
    Kind.STALE: 4,
    Kind.NO_SPACE: 4,
    Kind.UNSAFE: 5,
    Kind.UNREACHABLE: 6,
    Kind.TIMEOUT: 7,
}


@pytest.mark.parametrize("kind", Kind)
def test_an_error_is_a_status_and_a_line_on_stderr(fake: Fake, ctl: Ctl, kind: Kind) -> None:
    fake.starts = VsError("VS3012", kind, "db1 can't; do this")
    ran = ctl("volume", "delete", "db1", "-o", "json")
    assert (ran.status, ran.out) == (STATUSES[kind], "")
    assert ran.err.splitlines()[-1] == "vswitchctl: VS3012: db1 can't; do this"


def test_a_mutation_whose_answer_is_late_says_how_to_ask_again(fake: Fake, ctl: Ctl) -> None:
    fake.starts = VsError("VS5002", Kind.TIMEOUT, "late")
    ran = ctl("volume", "delete", "db1")
    assert fake.started()[1].request_id in ran.err


@pytest.mark.parametrize(
    "words",
    [
        "volume",
        "nonsense",
        "volume create",
        "volume grow db1 --size lots",
        "volume grow db1",
        "volume create db1 --size 1G --layout any --mirrors 2",
        "volume delete db1 --timeout -1",
        "volume list -o xml",
    ],
)
def test_wrong_words_are_usage_and_nothing_is_asked(fake: Fake, ctl: Ctl, words: str) -> None:
    ran = ctl(*words.split(" "))
    assert ran.status == 2, ran
    assert fake.asked == []


def test_a_controller_that_is_not_there(fake: Fake, ctl: Ctl) -> None:
    fake.stop()
    ran = ctl("status")
    assert ran.status == 6
    assert "VS5001" in ran.err and fake.address in ran.err


def test_devices_are_added_shown_and_removed(fake: Fake, ctl: Ctl) -> None:
    fake.devices = [device(f"disk{n}", f"id-{n}") for n in range(5)]
    words = ("file:/d.img", "--sp", "sp-a", "--size", "1G", "--name", "d")
    assert ctl("device", "add", *words).status == 0
    _, request = fake.started()
    assert (request.uri, request.sp, request.size, request.name) == (
        "file:/d.img",
        "sp-a",
        GIB,
        "d",
    )
    listed = ctl("device", "list")
    assert [line.split()[0] for line in listed.out.splitlines()[1:]] == [
        f"disk{n}" for n in range(5)
    ]
    # An address in brackets is text, not markup.
    assert "nbd://[fe80::1]:10809/disk4" in listed.out
    shown = ctl("device", "show", "disk3").out.split()
    assert {"disk3", "100G", "80G", "sp-a", "id-3"} <= set(shown)
    fake.asked.clear()
    assert ctl("device", "remove", "disk3", "--sp", "sp-a").status == 0
    _, request = fake.started()
    assert (request.name, request.sp) == ("disk3", "sp-a")
    assert ctl("device", "show", "nosuch").status == 3


def test_a_device_past_the_page_cache_is_asked_for_and_shown(fake: Fake, ctl: Ctl) -> None:
    assert ctl("device", "add", "file:/d.img", "--sp", "sp-a").status == 0
    _, request = fake.started()
    assert not request.direct
    assert not request.checksums
    fake.asked.clear()
    assert ctl("device", "add", "block:/dev/x", "--sp", "sp-a", "--direct").status == 0
    _, request = fake.started()
    assert request.direct
    fake.asked.clear()
    assert ctl("device", "add", "file:/e.img", "--sp", "sp-a", "--checksums").status == 0
    _, request = fake.started()
    assert request.checksums
    both, plain = device("disk0", "id-0"), device("disk1", "id-1")
    both.paths[0].direct = True
    both.checksums = True
    both.paths.add(sp="sp-b", uri="file:/d", direct=True)
    fake.devices = [both, plain]
    listed = ctl("device", "list").out
    assert "sp-a(direct)" in listed
    assert "crc32c" in ctl("device", "show", "disk0").out
    assert "crc32c" not in ctl("device", "show", "disk1").out
    assert "sp-b(direct,down)" in listed
    assert "direct" not in ctl("device", "show", "disk1").out


def test_sps_are_listed_shown_and_removed(fake: Fake, ctl: Ctl) -> None:
    fake.processors = [processor(f"sp-{c}") for c in "abc"]
    rows = [line.split()[:3] for line in ctl("sp", "list").out.splitlines()[1:]]
    assert rows == [["sp-a", "up", "3"], ["sp-b", "up", "master"], ["sp-c", "down", "3"]]
    assert "sp-b" in ctl("sp", "show", "sp-b").out
    assert ctl("sp", "remove", "sp-c").status == 0
    assert fake.started()[1].sp == "sp-c"
    assert ctl("sp", "show", "nosuch").status == 3


def test_operations_are_listed_and_shown(fake: Fake, ctl: Ctl) -> None:
    fake.operations = {
        f"op-{n}": [operation(DONE if n else RUNNING, name=f"op-{n}", copied=GIB, total=2 * GIB)]
        for n in range(3)
    }
    ran = ctl("operation", "list", "--volume", "db1", "--open")
    assert [line.split()[:5] for line in ran.out.splitlines()[1:]] == [
        ["op-0", "mirror_add", "db1", "running", "1/2"],
        ["op-1", "mirror_add", "db1", "done", "1/2"],
        ["op-2", "mirror_add", "db1", "done", "1/2"],
    ]
    assert "1G of 2G" in ran.out
    assert all(request.volume == "db1" and request.open_only for _, request in fake.asked)
    shown = ctl("operation", "show", "op-1")
    assert "put_t1" in shown.out and "leg 1" in shown.out
    assert ctl("operation", "cancel", "op-0").status == 0
    assert fake.started()[0] == "CancelOperation"


@pytest.mark.parametrize(
    ("severity", "status", "word"), [("OK", 0, "OK"), ("WARNING", 10, "WARN"), ("ERROR", 11, "ERR")]
)
def test_status_exits_as_the_cluster_is(
    fake: Fake, ctl: Ctl, severity: str, status: int, word: str
) -> None:
    health = cluster_pb2.HealthSeverity.Value(f"HEALTH_SEVERITY_{severity}")
    fake.status = cluster_pb2.ClusterStatus(
        cluster_id="c-1", health=health, term=14, master="sp-b", processors=3, processors_up=2
    )
    fake.status.checks.add(code="SP_DOWN", message="SP sp-c is down")
    fake.status.checks.add(code="VOLUME_DEGRADED", message="db1: 1 of 2 legs in sync")
    ran = ctl("status")
    assert ran.status == status
    lines = ran.out.splitlines()
    assert lines[0].startswith(f"health   {word}") and lines[0].endswith("SP_DOWN: SP sp-c is down")
    assert lines[1].strip() == "VOLUME_DEGRADED: db1: 1 of 2 legs in sync"
    assert "SPs      2/3 up" in ran.out and "master sp-b" in ran.out
    assert ctl("status", "-o", "json").status == status


def test_health_that_is_not_known_is_not_well(fake: Fake, ctl: Ctl) -> None:
    fake.status = cluster_pb2.ClusterStatus()
    assert ctl("status").status == 11


def test_volumes_are_listed_page_by_page(fake: Fake, ctl: Ctl) -> None:
    fake.volumes = [volume(f"db{n}") for n in range(5)]
    lines = ctl("volume", "list").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [f"db{n}" for n in range(5)]
    # Nothing is folded or cut where no person looks.
    assert all("mirror(sp-a/disk0:20G, sp-b/disk3:20G)" in line for line in lines[1:])


def test_a_volume_is_shown_with_where_to_mount_it_and_what_ails_it(fake: Fake, ctl: Ctl) -> None:
    fake.volumes = [volume()]
    assert ctl("volume", "show", "db1").out.splitlines() == [
        "db1  20G  degraded",
        "  layout   mirror(sp-a/disk0:20G, sp-b/disk3:20G)",
        "  version  13  epoch 9  owner sp-a",
        "  mount    nbd://127.0.0.1:10809/db1",
        "  note     1 of 2 legs in sync",
        "  running  op-1",
    ]


def test_fsck_exits_by_the_worst_finding(fake: Fake, ctl: Ctl) -> None:
    assert (ctl("fsck").status, fake.asked[-1][1].repair) == (0, False)
    fake.fsck.findings.add(
        code="T2_OLDER",
        severity=cluster_pb2.HEALTH_SEVERITY_WARNING,
        object="T2 of db1 at SP sp-a",
        evidence="version 1 is active, the store has 2",
        repair="wait",
    )
    ran = ctl("fsck", "--repair")
    assert (ran.status, fake.asked[-1][1].repair) == (10, True)
    assert ran.out.splitlines() == [
        "WARNING  T2_OLDER: T2 of db1 at SP sp-a: version 1 is active, the store has 2",
        "         wait",
    ]
    fake.fsck.findings.add(code="T1_MISSING", severity=cluster_pb2.HEALTH_SEVERITY_ERROR)
    assert ctl("fsck", "-o", "json").status == 11


def test_recover_shows_what_came_back(fake: Fake, ctl: Ctl) -> None:
    ran = ctl("recover", "--dry-run", "--force")
    assert ran.status == 0 and "sp-a" in ran.out and "d0" in ran.out
    request = fake.asked[-1][1]
    assert (request.force, request.dry_run) == (True, True)


def test_explain_asks_the_controller_about_objects(fake: Fake, ctl: Ctl) -> None:
    ran = ctl("explain", "db1")
    assert (ran.status, ran.out) == (0, "volume db1\n  It is.\n")
    assert fake.asked[-1][0] == "Explain"


def test_explain_knows_every_code_in_any_case(ctl: Ctl) -> None:
    for code, (meaning, remedy) in itertools.islice(EXPLAIN.items(), 3):
        for said in (code, code.lower()):
            ran = ctl("explain", said)
            assert (ran.status, ran.out) == (0, f"{code}: {meaning}\nWhat to do: {remedy}\n")
    ran = ctl("explain", "VS0000")
    assert ran.status == 3 and "VS2050" in ran.err


def test_the_version(ctl: Ctl) -> None:
    from vswitchd import __version__

    assert ctl("--version").out == f"vswitchctl {__version__}\n"
