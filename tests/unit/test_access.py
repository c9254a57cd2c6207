"""Lists of initiators as values: what may be, what is printed, and their JSON."""

from __future__ import annotations

import json

import pytest

from vswitchd.errors import VsError
from vswitchd.model.access import (
    MOST_ENTRIES,
    OPEN,
    Access,
    Chap,
    Entry,
    access_to_json,
    checked_entry,
    checked_initiator,
    decode_access,
    encode_access,
)

HOST = "iqn.2026-11.test:host"
CHAP = Chap("host", "hidden-secret-1")
MUTUAL = Chap("target", "hidden-secret-2")
ACCESS = Access(3, False, (Entry(HOST, CHAP, MUTUAL), Entry("iqn.2026-11.test:other")))


def refused(code: str, initiator: str, chap: Chap | None, mutual: Chap | None = None) -> None:
    with pytest.raises(VsError) as error:
        checked_entry(initiator, chap, mutual)
    assert error.value.code == code
    assert "hidden" not in str(error.value)


def test_names_are_compared_in_small_letters() -> None:
    assert checked_initiator(f" {HOST.upper()} ") == HOST
    for name in ("eui.0123456789abcdef", "naa.0123456789ABCDEF", "iqn.1993-08.org.debian:01:abc"):
        assert checked_initiator(name) == name.lower()


@pytest.mark.parametrize(
    "name",
    ["", "host", "iqn.host", "iqn.2026-11.", "eui.12", "iqn.2026-11.a b", f"{HOST}{'x' * 223}"],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    refused("VS1090", name, None)


def test_secrets_have_bounds_and_go_together() -> None:
    assert checked_entry(HOST, CHAP, MUTUAL) == Entry(HOST, CHAP, MUTUAL)
    for secret in ("hidden", "hidden" * 43, "hidden-secret\n1", "hidden-secret\0"):
        refused("VS1091", HOST, Chap("host", secret))
    for user in ("", "u" * 256, "a\0b"):
        refused("VS1091", HOST, Chap(user, CHAP.secret))
    refused("VS1092", HOST, None, MUTUAL)
    refused("VS1092", HOST, CHAP, Chap("target", CHAP.secret))
    # Bytes count, not letters.
    assert checked_entry(HOST, Chap("host", "ü" * 6), None)
    refused("VS1091", HOST, Chap("host", "ü" * 128))


def test_an_entry_replaces_the_one_before() -> None:
    once = OPEN.allowed(Entry(HOST, CHAP))
    assert once.allowed(Entry(HOST, CHAP)) == once
    assert once.allowed(Entry(HOST)).entries == (Entry(HOST),)
    assert once.denied(HOST) == OPEN
    full = Access(entries=tuple(Entry(f"iqn.2026-11.t:{n:04}") for n in range(MOST_ENTRIES)))
    assert full.allowed(Entry("iqn.2026-11.t:0007", CHAP)).entries[7].chap == CHAP
    with pytest.raises(VsError, match="VS1093"):
        full.allowed(Entry(HOST))


def test_what_is_printed_has_no_secret() -> None:
    assert "hidden" not in repr(ACCESS) + str(ACCESS) + f"{ACCESS.entries[0].chap}"
    assert decode_access(encode_access(ACCESS)) == ACCESS


@pytest.mark.parametrize("field", ["initiator", "user", "secret", "mutual_user", "mutual_secret"])
def test_what_is_damaged_is_told_without_its_values(field: str) -> None:
    value = access_to_json(ACCESS)
    for wrong in (12, ["hidden-secret-1"], None):
        value["entries"][0][field] = wrong
        with pytest.raises(VsError) as error:
            decode_access(json.dumps(value))
        assert error.value.code == "VS1020" and field in str(error.value)
        assert "hidden" not in str(error.value) and "12" not in error.value.message
    for text in ('"hidden"', '{"version": 1, "nbd": "hidden", "entries": []}', '{"hidden'):
        with pytest.raises(VsError) as error:
            decode_access(text)
        assert "hidden" not in str(error.value)
