"""What an SP remembers over restarts: who it is, its devices, its committed and staged T2s, and who
may use their volumes.

One small JSON file for each thing, each replaced whole, so that a crash leaves the old or the new.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TypeVar

from vswitchd.errors import Kind, VsError
from vswitchd.model.access import OPEN, Access, decode_access, encode_access
from vswitchd.model.codec import (
    Fields,
    as_text,
    decode_ejection,
    decode_t2,
    dumps,
    encode_ejection,
    encode_t2,
    loads,
)
from vswitchd.model.objects import T2, DeviceId, SpId, VolumeId
from vswitchd.model.view import Ejection
from vswitchd.processor.files import Files

#: What a volume's id may be made of, since files are named after it.
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: Of so many volumes it is remembered that they were taken out of service: a request that is on
#: its way for that long is not to be feared.
REMOVED_KEPT = 256
_IDENTITY = "processor.json"
_T2 = "t2/"
_COMMITTED = ".json"
_STAGED = ".staged.json"
_ACCESS = "access/"
_ALONE = "alone/"
_RECORDED = ".json"
_PROPOSED = ".proposed.json"

R = TypeVar("R")


@dataclass
class Identity:
    """The SP's own file. `direct` are devices that are opened past the page cache, `checksums`
    those that have some by their labels. `mirrored` are volumes whose mirrors this SP has owned
    since its last clean end: after another end their legs may differ. `boot` is the run of the
    machine in which its devices were written last; empty after a clean end. `removed` says with
    which version volumes were taken out of service here, the last ones of them. `managers`:
    where all SPs' VSMs are, as the controller said last."""

    sp: str
    cluster_id: str = ""
    term: int = 0
    devices: dict[str, str] = field(default_factory=dict)
    direct: list[str] = field(default_factory=list)
    checksums: list[str] = field(default_factory=list)
    mirrored: list[str] = field(default_factory=list)
    boot: str = ""
    removed: dict[str, int] = field(default_factory=dict)
    managers: dict[str, str] = field(default_factory=dict)


def _decode_identity(text: str) -> Identity:
    found = loads(text, "processor")
    # An SP from before there were any has not written the field.
    fields = Fields({"checksums": [], **found} if isinstance(found, dict) else found, "processor")
    identity = Identity(
        sp=fields.text("sp"),
        cluster_id=fields.text("cluster_id"),
        term=fields.number("term"),
        devices=fields.texts("devices"),
        direct=list(fields.items("direct", as_text)),
        checksums=list(fields.items("checksums", as_text)),
        mirrored=list(fields.items("mirrored", as_text)),
        boot=fields.text("boot"),
        removed=fields.numbers("removed"),
        managers=fields.texts("managers"),
    )
    fields.done()
    return identity


class State:
    """What the SP remembers. Every change is durable when its method returns; what can't be
    written is VsError VS9022, and nothing has changed then."""

    def __init__(self, files: Files, sp: str) -> None:
        """Reads what is there. VS3020: another SP's. VS9020: damaged."""
        self._files = files
        try:
            self.identity = self._read_identity(sp)
            #: Volumes that were not ended cleanly in the previous life.
            self.unclean = {VolumeId(volume) for volume in self.identity.mirrored}
            self._accesses = self._read_accesses()
            self.committed = self._read_t2s(_COMMITTED)
            #: What owners have made of their volumes by themselves, recorded here; and what this
            #: SP is about to make of those that it owns.
            self.ejections = self._read_ejections(_RECORDED)
            self.proposals = self._read_ejections(_PROPOSED)
            self.staged = {
                volume: t2
                for volume, t2 in self._read_t2s(_STAGED).items()
                # One that was committed may be back: `commit` need not wait for its removal.
                if t2 != self.committed.get(volume)
            }
        except VsError:
            self.close()
            raise

    def close(self) -> None:
        """Lets another process have the files."""
        self._files.close()

    def _read_identity(self, sp: str) -> Identity:
        if _IDENTITY not in self._files.names():
            return Identity(sp)
        identity = self._decoded(
            _IDENTITY,
            _decode_identity,
            f"restore it from a backup. Without one move {self._files.where()} away and start "
            "again: the controller pushes this SP's objects anew, but the legs of mirrors that it "
            "owns may differ, so replace one leg of each",
        )
        if identity.sp != sp:
            raise VsError(
                "VS3020",
                Kind.PRECONDITION,
                f"{self._files.where()} is the state of SP {identity.sp}, not of {sp}; "
                "use that name or another directory",
            )
        return identity

    def _read_t2s(self, suffix: str) -> dict[VolumeId, T2]:
        found = self._read_all(_T2, suffix, _STAGED, decode_t2)
        return {t2.volume: t2 for t2 in found}

    def _read_ejections(self, suffix: str) -> dict[VolumeId, Ejection]:
        found = self._read_all(_ALONE, suffix, _PROPOSED, decode_ejection)
        return {ejection.t2.volume: ejection for ejection in found}

    def _read_all(
        self, where: str, suffix: str, longer: str, decode: Callable[[str], R]
    ) -> list[R]:
        """All files in a directory that end so; `longer` ends so too, and is another kind."""
        found = []
        for name in self._files.names():
            if not name.startswith(where) or not name.endswith(suffix):
                continue
            if suffix != longer and name.endswith(longer):
                continue
            advice = (
                "move it away and start again: the controller pushes that volume's T2 object anew"
            )
            found.append(self._decoded(name, decode, advice))
        return found

    def _decoded(self, name: str, decode: Callable[[str], R], advice: str) -> R:
        """What is in a file; VsError VS9020 with that advice if it is damaged."""
        try:
            return decode(self._files.read(name))
        except VsError as error:
            if error.code != "VS1020":
                raise
            text = f"{self._files.where(name)} is damaged ({error.message}); {advice}"
            raise VsError("VS9020", Kind.INTERNAL, text) from None

    def _read_accesses(self) -> dict[VolumeId, Access]:
        found = {}
        for name in self._files.names():
            if not name.startswith(_ACCESS):
                continue
            access = self._decoded(
                name,
                decode_access,
                "restore it. Without it the volume would be whoever's until the controller says "
                "otherwise",
            )
            found[VolumeId(name.removeprefix(_ACCESS).removesuffix(_COMMITTED))] = access
        return found

    @staticmethod
    def _name(volume: VolumeId, suffix: str, where: str = _T2) -> str:
        if not _ID.fullmatch(volume):
            raise VsError("VS1032", Kind.INVALID, f"{volume[:80]!r} is not a volume's id")
        return f"{where}{volume}{suffix}"

    def _update(self, **changes: object) -> None:
        """Changes the identity, on disk first."""
        changed = Identity(**{**asdict(self.identity), **changes})
        self._files.write(_IDENTITY, dumps(asdict(changed)))
        self.identity = changed

    def set_cluster(self, cluster_id: str) -> None:
        """Joins a cluster for good."""
        self._update(cluster_id=cluster_id)

    def set_term(self, term: int) -> None:
        """Remembers the highest term that was seen."""
        self._update(term=term)

    def set_device(
        self, device: DeviceId, uri: str | None, *, direct: bool = False, checksums: bool = False
    ) -> None:
        """Remembers how a device is reached and what it is; None forgets it."""
        known = self.identity
        devices = {other: path for other, path in known.devices.items() if other != device}
        if uri is not None:
            devices[device] = uri
        past_cache = {*known.direct} - {device} | ({device} if direct else set())
        summed = {*known.checksums} - {device} | ({device} if checksums else set())
        changed = devices != known.devices or past_cache != {*known.direct}
        if changed or summed != {*known.checksums}:
            self._update(devices=devices, direct=sorted(past_cache), checksums=sorted(summed))

    def set_mirrored(self, volumes: set[str]) -> None:
        """Remembers whose mirrors' legs may differ if this process just ends."""
        if set(self.identity.mirrored) != volumes:
            self._update(mirrored=sorted(volumes))

    def set_boot(self, boot: str) -> None:
        """Remembers the run of the machine; empty: all is flushed."""
        if self.identity.boot != boot:
            self._update(boot=boot)

    def set_removed(self, volume: VolumeId, version: int) -> None:
        """Remembers up to which version a volume's trees are over here."""
        if self.identity.removed.get(volume, 0) < version:
            others = {id_: at for id_, at in self.identity.removed.items() if id_ != volume}
            kept = list(others.items())[1 - REMOVED_KEPT :]
            self._update(removed={**dict(kept), volume: version})

    def access(self, volume: VolumeId) -> Access:
        """Who may use a volume."""
        return self._accesses.get(volume, OPEN)

    def set_access(self, volume: VolumeId, access: Access) -> None:
        """Remembers that, unless what is known is as late."""
        if access.version > self.access(volume).version:
            self._files.write(self._name(volume, _COMMITTED, _ACCESS), encode_access(access))
            self._accesses[volume] = access

    def stage(self, t2: T2) -> None:
        """Keeps a T2 object, inactive."""
        self._files.write(self._name(t2.volume, _STAGED), encode_t2(t2))
        self.staged[t2.volume] = t2

    def commit(self, t2: T2) -> None:
        """Makes a T2 object the one that is activated after a restart."""
        committed, staged = self._name(t2.volume, _COMMITTED), self.staged.get(t2.volume)
        if staged == t2:
            # Hosts on other SPs may wait for this: its bytes are on disk already.
            self._files.rename(self._name(t2.volume, _STAGED), committed)
            self.committed[t2.volume] = self.staged.pop(t2.volume)
            return
        if self.committed.get(t2.volume) != t2:
            self._files.write(committed, encode_t2(t2))
            self.committed[t2.volume] = t2
        if staged is not None and (staged.version, staged.epoch) <= (t2.version, t2.epoch):
            self._files.remove(self._name(t2.volume, _STAGED), durable=False)
            self.staged.pop(t2.volume)

    def remove(self, volume: VolumeId) -> None:
        """Forgets a volume's T2 objects, the committed one first, and then who may use it."""
        self._files.remove(*(self._name(volume, suffix) for suffix in (_COMMITTED, _STAGED)))
        self.committed.pop(volume, None)
        self.staged.pop(volume, None)
        if volume in self._accesses:
            self._files.remove(self._name(volume, _COMMITTED, _ACCESS))
            del self._accesses[volume]

    @property
    def managers(self) -> dict[SpId, str]:
        """Where all SPs' VSMs are."""
        return {SpId(sp): address for sp, address in self.identity.managers.items()}

    def set_managers(self, managers: Mapping[SpId, str]) -> None:
        """Remembers where all SPs' VSMs are, for when the controller is away."""
        if self.managers != managers:
            self._update(managers={str(sp): address for sp, address in managers.items()})

    def propose(self, ejection: Ejection) -> None:
        """Keeps what this SP is about to make of a volume that it owns."""
        volume = ejection.t2.volume
        self._files.write(self._name(volume, _PROPOSED, _ALONE), encode_ejection(ejection))
        self.proposals[volume] = ejection

    def withdraw(self, volume: VolumeId) -> None:
        """Forgets it: it has come to be, or the volume's tree is another by now."""
        self._files.remove(self._name(volume, _PROPOSED, _ALONE))
        self.proposals.pop(volume, None)

    def record(self, ejection: Ejection) -> None:
        """Keeps what the owner of a volume has made of it."""
        volume = ejection.t2.volume
        self._files.write(self._name(volume, _RECORDED, _ALONE), encode_ejection(ejection))
        self.ejections[volume] = ejection

    def forget(self, volume: VolumeId, epoch: int) -> None:
        """The store knows trees of up to that epoch: what is recorded up to it need not be told."""
        found = self.ejections.get(volume)
        if found is not None and found.t2.epoch <= epoch:
            self._files.remove(self._name(volume, _RECORDED, _ALONE), durable=False)
            del self.ejections[volume]
