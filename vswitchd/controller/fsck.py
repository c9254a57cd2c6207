"""The store, the SPs and the labels held against each other. Pure; a finding says what mends it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vswitchd.model.objects import T1, SpId, T1Id, Volume, VolumeId, project
from vswitchd.model.view import LabelView, T1View, View
from vswitchd.ports import DeviceRecord

WARNING, ERROR = "warning", "error"
#: What mends most of what is out of step.
RECONCILED = "`vswitchctl fsck --repair`, or wait: the controller does it within seconds"


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """`code` is stable; `severity` warning or error; `repair` says what to do."""

    code: str
    severity: str
    object: str
    evidence: str
    repair: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was read of each side. `views` and `labels` are of the SPs that answered; `busy` are
    volumes that an operation is changing: what of them differs is on its way."""

    volumes: Sequence[Volume]
    devices: Sequence[DeviceRecord]
    ledger: Collection[T1Id]
    known: Collection[SpId]
    term: int
    busy: Collection[VolumeId]
    views: Mapping[SpId, View]
    labels: Mapping[SpId, Sequence[LabelView]]
    peers: Mapping[SpId, str]
    cluster: str


def findings(found: Evidence) -> list[Finding]:
    """Everything that does not agree, worst first."""
    every = [
        *_processors(found),
        *_devices(found),
        *_labels(found),
        *_objects(found),
        *_strangers(found),
        *_trees(found),
    ]
    return sorted(set(every), key=lambda one: (one.severity != ERROR, one))


def _processors(found: Evidence) -> Iterator[Finding]:
    for sp in sorted(found.known):
        view = found.views.get(sp)
        if view is None:
            text = "it did not answer, so what it holds was not checked"
            yield Finding("SP_NOT_HEARD", WARNING, f"SP {sp}", text, "start it, then check again")
        elif view.term > found.term:
            yield Finding(
                "TERM_BEHIND",
                ERROR,
                f"SP {sp}",
                f"it has seen term {view.term}, the store says {found.term}: the store is an old "
                "copy, or another controller is at work",
                "stop the other controller; if there is none, this one catches up by itself",
            )


def _devices(found: Evidence) -> Iterator[Finding]:
    for record in found.devices:
        for sp in sorted(record.paths):
            view = found.views.get(sp)
            device = view.device(record.id) if view is not None else None
            if view is not None and (device is None or not device.up):
                why = "it does not have it" if device is None else device.error
                yield Finding(
                    "DEVICE_MISSING",
                    ERROR,
                    f"device {record.name} at SP {sp}",
                    why,
                    "bring the device back; the SP opens it again by itself",
                )
    ids = {record.id for record in found.devices}
    for sp, view in sorted(found.views.items()):
        for device in view.devices:
            if device.id not in ids:
                yield Finding(
                    "DEVICE_UNKNOWN",
                    WARNING,
                    f"device {device.id} at SP {sp}",
                    f"{device.uri} is open there and not in the store",
                    f"`vswitchctl device add {device.uri} --sp {sp}` takes it in",
                )


def _labels(found: Evidence) -> Iterator[Finding]:
    for sp, labels in sorted(found.labels.items()):
        for label in labels:
            where = f"label of {label.uri} at SP {sp}"
            if label.error:
                yield Finding(
                    "LABEL_UNREADABLE", ERROR, where, label.error, "mend the device, or replace it"
                )
                continue
            if label.cluster != found.cluster:
                text = f"it belongs to cluster {label.cluster}"
                yield Finding("LABEL_FOREIGN", ERROR, where, text, "take the device away")
            if label.copies < 2:
                yield Finding(
                    "LABEL_COPY_LOST",
                    WARNING,
                    where,
                    "one of its two copies can't be read",
                    "none is needed if it was torn by a crash: the next change of the label "
                    "writes it anew; if it stays, look at the device",
                )
            spans = sorted(
                (e.offset, e.offset + e.length, held.t1.id)
                for held in label.t1s
                for e in held.t1.extents
                if e.device == label.device
            )
            for (_, end, one), (start, _, other) in pairwise(spans):
                if start < end:
                    yield Finding(
                        "EXTENTS_OVERLAP",
                        ERROR,
                        where,
                        f"T1 objects {one} and {other} both have byte {start}",
                        "copy what you need away from both volumes; one of them is damaged",
                    )


def _all_held(found: Evidence) -> dict[T1Id, dict[SpId, T1View]]:
    """Every T1 object in any label, by the home that the label names."""
    held: dict[T1Id, dict[SpId, T1View]] = defaultdict(dict)
    for labels in found.labels.values():
        for label in labels:
            for one in label.t1s:
                held[one.t1.id][one.t1.home] = one
    return held


def _objects(found: Evidence) -> Iterator[Finding]:
    held = _all_held(found)
    for volume in found.volumes:
        if volume.id in found.busy:
            continue
        for t1 in volume.t1s:
            if t1.home not in found.labels:
                continue
            yield from _object(volume, t1, held.get(t1.id, {}))


def _object(volume: Volume, t1: T1, homes: Mapping[SpId, T1View]) -> Iterator[Finding]:
    what = f"T1 {t1.id} of volume {volume.name}"
    mine = homes.get(t1.home)
    if mine is None:
        where = f"only at {', '.join(sorted(homes))}" if homes else "in no label"
        yield Finding(
            "T1_MISSING",
            ERROR,
            what,
            f"its home is SP {t1.home}, and it is {where}",
            "bring its device back; if it is lost, remove that leg, or restore a backup",
        )
        return
    for other in sorted(set(homes) - {t1.home}):
        yield Finding(
            "T1_TWO_HOMES",
            ERROR,
            what,
            f"labels name SP {other} as its home too",
            "the store's word counts: take the other's device away and look at it",
        )
    if mine.t1.volume != volume.id or mine.t1.extents[: len(t1.extents)] != t1.extents:
        yield Finding(
            "T1_DIFFERS",
            ERROR,
            what,
            f"the label at SP {t1.home} has other extents or another volume than the store",
            "the store is an old copy: bring a newer one, or start an empty one and `recover`",
        )
    if mine.epoch != volume.epoch:
        yield Finding(
            "T1_EPOCH",
            WARNING if mine.epoch < volume.epoch else ERROR,
            what,
            f"it serves epoch {mine.epoch}, the volume is at {volume.epoch}",
            "any change of the volume sets it right, such as serving it from one SP more"
            if mine.epoch < volume.epoch
            else "the store is an old copy: bring a newer one, or start an empty one and `recover`",
        )


def _strangers(found: Evidence) -> Iterator[Finding]:
    ours = {t1.id: volume for volume in found.volumes for t1 in volume.t1s}
    for t1_id, homes in sorted(_all_held(found).items()):
        (home, one), *_ = homes.items()
        if t1_id in ours or one.t1.volume in found.busy:
            continue
        if t1_id in found.ledger:
            yield Finding(
                "T1_LEFT_OVER",
                WARNING,
                f"T1 {t1_id} at SP {home}",
                "an operation made it, and no volume has it",
                RECONCILED,
            )
        else:
            yield Finding(
                "T1_STRANGER",
                WARNING,
                f"T1 {t1_id} at SP {home}",
                f"the store has never heard of it (volume {one.t1.volume}, {one.t1.size} bytes), "
                "so it is not removed",
                "if the store is an old copy, bring a newer one; if nobody needs it, wipe its "
                "device when everything else has been moved away from there",
            )


def _trees(found: Evidence) -> Iterator[Finding]:
    volumes = {volume.id: volume for volume in found.volumes}
    owners: dict[tuple[VolumeId, int], SpId] = {}
    for sp, view in sorted(found.views.items()):
        for held in view.t2s:
            t2 = held.t2
            if t2.volume in found.busy:
                continue
            if held.active:
                other = owners.setdefault((t2.volume, t2.epoch), t2.owner)
                if other != t2.owner:
                    text = f"in epoch {t2.epoch} SPs {other} and {t2.owner} are both its owner"
                    yield Finding(
                        "TWO_OWNERS", ERROR, f"volume {t2.name}", text, "stop one of them at once"
                    )
            volume = volumes.get(t2.volume)
            what = f"T2 of {t2.name} at SP {sp}"
            if volume is None:
                ours = any(t1 in found.ledger for t1 in t2.homes)
                yield Finding(
                    "T2_STRANGER",
                    WARNING,
                    what,
                    "the store has no such volume",
                    RECONCILED
                    if ours
                    else "if the store is an old copy, bring a newer one; hosts may be using it",
                )
            elif sp not in volume.serving:
                yield Finding("T2_LEFT_OVER", WARNING, what, "it does not serve it", RECONCILED)
            elif not held.active:
                if t2.version > volume.version:
                    text = f"version {t2.version} is staged, the store has {volume.version}"
                    yield Finding("T2_STAGED", WARNING, what, text, "none: it is never activated")
            elif t2.version > volume.version:
                yield Finding(
                    "T2_NEWER",
                    ERROR,
                    what,
                    f"version {t2.version} is active, the store has {volume.version}",
                    "the store is an old copy: bring a newer one, or start an empty one and "
                    "`recover`",
                )
            else:
                yield from _tree(found, volume, view, what)
    for volume in found.volumes:
        for sp in volume.serving if volume.id not in found.busy else ():
            if sp in found.views and found.views[sp].t2(volume.id) is None:
                text = "it serves the volume and has no active tree of it"
                yield Finding(
                    "T2_MISSING", ERROR, f"T2 of {volume.name} at SP {sp}", text, RECONCILED
                )


def _tree(found: Evidence, volume: Volume, view: View, what: str) -> Iterator[Finding]:
    held = view.t2(volume.id)
    assert held is not None
    if held.t2.version < volume.version:
        text = f"version {held.t2.version} is active, the store has {volume.version}"
        yield Finding("T2_OLDER", WARNING, what, text, RECONCILED)
        return
    try:
        wanted = project(volume, view.sp, dict(found.peers))
    except KeyError:
        return
    if held.t2 != wanted:
        yield Finding("T2_DIFFERS", WARNING, what, "it is not what the store says", RECONCILED)
    for t1, home in held.t2.homes.items():
        if home in found.views and found.views[home].t1(t1) is None:
            yield Finding(
                "REFERENCE_DANGLES",
                ERROR,
                what,
                f"it refers to T1 {t1} at SP {home}, which does not hold it",
                "bring the device of that object back",
            )
