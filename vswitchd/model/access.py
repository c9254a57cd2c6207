"""Who may use a volume: initiators with their CHAP secrets over iSCSI, anybody or nobody over NBD.

A secret is in no text that these values print; `encode_access` alone writes it, for files that only
their owner reads and for the engine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from vswitchd.errors import Kind, VsError
from vswitchd.model.codec import Fields, Json, dumps, loads, malformed

#: Bytes of a secret: 96 bits at least, as RFC 7143 (9.2.1) demands, and what initiators take.
SHORTEST, LONGEST = 12, 255
#: Most bytes of a name of CHAP, and entries of one volume.
LONGEST_USER = 255
MOST_ENTRIES = 256
#: RFC 7143, 4.2.7: a name of one of three kinds, of at most 223 bytes, without what its
#: normalization would change.
_INITIATOR = re.compile(
    r"(?:iqn\.\d{4}-\d{2}\.[a-z0-9.:-]+|eui\.[0-9a-f]{16}|naa\.(?:[0-9a-f]{16}|[0-9a-f]{32}))"
)
_LONGEST_NAME = 223


@dataclass(frozen=True, slots=True)
class Chap:
    """A name of CHAP with its secret."""

    user: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Entry:
    """An initiator that may log in. `chap`: it has to show this; `mutual`: the target shows this,
    if it is asked."""

    initiator: str
    chap: Chap | None = None
    mutual: Chap | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """No entries: whoever reaches a portal may log in. Every change has a higher version; 0 is that
    of a volume of which nothing was ever said."""

    version: int = 0
    nbd: bool = True
    entries: tuple[Entry, ...] = ()

    def allowed(self, entry: Entry) -> Access:
        """With the entry, in the place of the initiator's former one; VsError VS1093 if that is one
        too many."""
        others = [one for one in self.entries if one.initiator != entry.initiator]
        if len(others) >= MOST_ENTRIES:
            raise VsError(
                "VS1093",
                Kind.INVALID,
                f"a volume has at most {MOST_ENTRIES} initiators; deny one that is not used any "
                "more (`vswitchctl volume access list`)",
            )
        entries = sorted([*others, entry], key=lambda one: one.initiator)
        return replace(self, entries=tuple(entries))

    def denied(self, initiator: str) -> Access:
        """Without the initiator's entry."""
        left = tuple(one for one in self.entries if one.initiator != initiator)
        return replace(self, entries=left)


OPEN = Access()


def checked_initiator(name: str) -> str:
    """The name as it is compared, in lower case; VsError VS1090 if it is none."""
    lower = name.strip().lower()
    if len(lower) > _LONGEST_NAME or not _INITIATOR.fullmatch(lower):
        raise VsError(
            "VS1090",
            Kind.INVALID,
            f"{name[:80]!r} is no initiator's name; it is like iqn.2026-11.org.example:host1 (on "
            "Linux in /etc/iscsi/initiatorname.iscsi), eui. with 16 hex digits, or naa. with 16 or "
            "32",
        )
    return lower


def checked_entry(initiator: str, chap: Chap | None, mutual: Chap | None) -> Entry:
    """An entry that may be. VsError VS1090: no initiator's name. VS1091: a name or a secret of CHAP
    that can't be. VS1092: two that do not go together."""
    name = checked_initiator(initiator)
    for one, which in ((chap, "CHAP"), (mutual, "mutual CHAP")):
        if one is not None:
            _check(name, which, one)
    if mutual is not None and chap is None:
        raise VsError(
            "VS1092",
            Kind.INVALID,
            f"{name}: the target shows who it is to an initiator that has shown it, so mutual CHAP "
            "needs --chap-user and --chap-secret-file, too",
        )
    if mutual is not None and chap is not None and mutual.secret == chap.secret:
        raise VsError(
            "VS1092",
            Kind.INVALID,
            f"{name}: the two secrets are the same, so each side could answer with what it has "
            "heard from the other; choose another one for mutual CHAP",
        )
    return Entry(name, chap, mutual)


def _check(initiator: str, which: str, chap: Chap) -> None:
    user, secret = chap.user.encode(), chap.secret.encode(errors="replace")
    if not 1 <= len(user) <= LONGEST_USER or not chap.user.isprintable():
        raise VsError(
            "VS1091",
            Kind.INVALID,
            f"{initiator}: the name for {which} has 1 to {LONGEST_USER} bytes that can be printed",
        )
    if not SHORTEST <= len(secret) <= LONGEST or not chap.secret.isprintable():
        # How long it is may be told, what it is never.
        raise VsError(
            "VS1091",
            Kind.INVALID,
            f"{initiator}: the secret for {which} has {len(secret)} bytes; it is one line of "
            f"{SHORTEST} to {LONGEST} bytes of text (e.g. `openssl rand -hex 16`)",
        )


def access_to_json(access: Access) -> Json:
    """With the secrets."""
    return {
        "version": access.version,
        "nbd": access.nbd,
        "entries": [_entry_to_json(entry) for entry in access.entries],
    }


def _entry_to_json(entry: Entry) -> Json:
    none = Chap("", "")
    chap, mutual = entry.chap or none, entry.mutual or none
    return {
        "initiator": entry.initiator,
        "user": chap.user,
        "secret": chap.secret,
        "mutual_user": mutual.user,
        "mutual_secret": mutual.secret,
    }


def _hidden(fields: Fields, name: str) -> str:
    """A string that no error shows."""
    value = fields.take(name)
    if not isinstance(value, str):
        raise malformed(fields.path(name), "a string was expected")
    return value


def _entry_from_json(value: object, where: str) -> Entry:
    if not isinstance(value, dict):
        raise malformed(where, "an object was expected")
    fields = Fields(value, where)
    initiator = _hidden(fields, "initiator")
    chap = Chap(_hidden(fields, "user"), _hidden(fields, "secret"))
    mutual = Chap(_hidden(fields, "mutual_user"), _hidden(fields, "mutual_secret"))
    fields.done()
    return Entry(initiator, chap if chap.user else None, mutual if mutual.user else None)


def encode_access(access: Access) -> str:
    """As JSON text, with the secrets."""
    return dumps(access_to_json(access))


def decode_access(text: str) -> Access:
    """From JSON text; VsError VS1020 names the field that is wrong, and shows no value."""
    fields = Fields(loads(text, "access"), "access")
    version, nbd = fields.number("version"), fields.take("nbd")
    if not isinstance(nbd, bool):
        raise malformed(fields.path("nbd"), "true or false was expected")
    access = Access(version, nbd, fields.items("entries", _entry_from_json))
    fields.done()
    return access
