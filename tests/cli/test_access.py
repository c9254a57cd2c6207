"""vswitchctl volume access: what it asks for, where secrets come from, and what it prints."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cli.conftest import Ctl
from tests.cli.fake import Fake
from vswitchd.rpc import volume_pb2

HOST = "iqn.2026-11.test:host"
SECRET, OURS = "hidden-secret-1", "hidden-secret-2"


def told(**fields: object) -> volume_pb2.VolumeAccess:
    return volume_pb2.VolumeAccess(
        volume_id="v-1",
        name="db1",
        version=3,
        nbd=False,
        initiators=[
            volume_pb2.AllowedInitiator(initiator=HOST, chap_user="host", mutual_user="target"),
            volume_pb2.AllowedInitiator(initiator="iqn.2026-11.test:other"),
        ],
        **fields,  # type: ignore[arg-type]
    )


def test_secrets_come_out_of_files(fake: Fake, ctl: Ctl, tmp_path: Path) -> None:
    fake.access = told()
    for name, text in (("chap", SECRET + "\r\n"), ("mutual", OURS)):
        (tmp_path / name).write_text(text)
    argv = ["volume", "access", "allow", "db1", "--initiator", HOST]
    argv += ["--chap-user", "host", "--chap-secret-file", str(tmp_path / "chap")]
    argv += ["--mutual-user", "target", "--mutual-secret-file", str(tmp_path / "mutual")]
    ran = ctl(*argv)
    assert ran.status == 0 and "hidden" not in ran.out + ran.err
    assert ran.out.splitlines() == [
        "db1  access version 3",
        "  NBD    closed",
        "initiator               CHAP as       target as",
        "iqn.2026-11.test:host   host          target",
        "iqn.2026-11.test:other  not demanded  -",
    ]
    ((method, request),) = fake.asked
    assert (method, request.name, request.initiator) == ("AllowInitiator", "db1", HOST)
    assert (request.chap.user, request.chap.secret) == ("host", SECRET)
    assert (request.mutual.user, request.mutual.secret) == ("target", OURS)


def test_a_secret_may_come_from_standard_input(
    fake: Fake, ctl: Ctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.access = told()
    given = SimpleNamespace(buffer=io.BytesIO(f"{SECRET}\n".encode()))
    monkeypatch.setattr(sys, "stdin", given)
    argv = ("--chap-user", "host", "--chap-secret-file", "-")
    assert ctl("volume", "access", "allow", "db1", "--initiator", HOST, *argv).status == 0
    ((_, request),) = fake.asked
    assert request.chap.secret == SECRET and not request.HasField("mutual")


def test_what_does_not_go_together_is_not_asked(fake: Fake, ctl: Ctl, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"hidden\xff\xfe")
    for code, *argv in (
        ("VS1060", "--chap-user", "host"),
        ("VS1060", "--mutual-secret-file", str(tmp_path / "binary")),
        ("VS1060", "--chap-secret-file", "-", "--mutual-secret-file", "-"),
        ("VS1094", "--chap-user", "host", "--chap-secret-file", str(tmp_path / "nothing")),
        ("VS1094", "--chap-user", "host", "--chap-secret-file", str(tmp_path / "binary")),
    ):
        ran = ctl("volume", "access", "allow", "db1", "--initiator", HOST, *argv)
        assert ran.status == 2 and code in ran.err and "hidden" not in ran.err
    assert ctl("volume", "access", "nbd", "db1").status == 2
    assert not fake.asked


def test_denials_and_nbd(fake: Fake, ctl: Ctl) -> None:
    fake.access = volume_pb2.VolumeAccess(name="db1", nbd=True)
    for argv in (("--on",), ("--off",)):
        assert ctl("volume", "access", "nbd", "db1", *argv).status == 0
    ran = ctl("volume", "access", "deny", "db1", "--initiator", HOST, "--open")
    assert "whoever reaches a portal" in ran.out
    assert ctl("volume", "access", "list", "db1", "-o", "json").status == 0
    methods = [(method, getattr(request, "on", None)) for method, request in fake.asked]
    assert methods == [
        ("SetVolumeNbd", True),
        ("SetVolumeNbd", False),
        ("DenyInitiator", None),
        ("GetVolumeAccess", None),
    ]
    assert fake.asked[2][1].open


def test_who_was_not_told_is_named(fake: Fake, ctl: Ctl) -> None:
    at = volume_pb2.AccessAt
    fake.access = told(
        sps=[
            at(sp="sp-a", version=3, heard=True),
            at(sp="sp-b", version=2, heard=True),
            at(sp="sp-c"),
        ]
    )
    assert "not told yet: sp-b, sp-c;" in ctl("volume", "access", "list", "db1").err
    fake.access = told(sps=[at(sp="sp-a", version=4, heard=True)])
    assert "sp-a knows of a later change" in ctl("volume", "access", "list", "db1").err
