"""Plans and steps <-> JSON text for the journal, and a step in words for people."""

from __future__ import annotations

from vswitchd.model.codec import (
    Fields,
    Json,
    dumps,
    loads,
    malformed,
    t1_from_json,
    t1_to_json,
    t2_from_json,
    t2_to_json,
    volume_from_json,
    volume_to_json,
)
from vswitchd.model.objects import SpId, T1Id, VolumeId
from vswitchd.model.view import CopyMode
from vswitchd.restructure.steps import (
    ActivateT2,
    AdoptT1,
    AwaitLease,
    AwaitSync,
    Commit,
    Copy,
    DeleteT1,
    DropReference,
    FenceT1,
    Forget,
    Plan,
    PutT1,
    RemoveT2,
    StageT2,
    Step,
)

_KINDS: dict[type[Step], str] = {
    PutT1: "put_t1",
    FenceT1: "fence_t1",
    AdoptT1: "adopt_t1",
    DeleteT1: "delete_t1",
    StageT2: "stage_t2",
    Commit: "commit",
    ActivateT2: "activate_t2",
    RemoveT2: "remove_t2",
    DropReference: "drop_reference",
    AwaitSync: "await_sync",
    AwaitLease: "await_lease",
    Copy: "copy",
    Forget: "forget",
}


def kind(step: Step) -> str:
    """The step's kind as the API and the journal name it."""
    return _KINDS[type(step)]


def describe(step: Step) -> tuple[str, str, str, int]:
    """A step as (kind, SP or "" for the store, object in words, bytes to copy)."""
    match step:
        case PutT1(t1, _) | AdoptT1(t1, _):
            sp, words, copy = t1.home, f"T1 {t1.id}", 0
        case FenceT1(sp, t1_id, epoch, _):
            words, copy = f"T1 {t1_id} to epoch {epoch}", 0
        case DeleteT1(sp, t1_id, _):
            words, copy = f"T1 {t1_id}", 0
        case StageT2(t2):
            sp, words, copy = t2.sp, f"T2 of {t2.name} version {t2.version}", 0
        case Commit(volume):
            sp, words, copy = SpId(""), f"volume {volume.name} version {volume.version}", 0
        case ActivateT2(sp, volume_id, version):
            words, copy = f"T2 of {volume_id} version {version}", 0
        case RemoveT2(sp, volume_id, _):
            words, copy = f"T2 of {volume_id}", 0
        case DropReference(sp, _, t1_id):
            words, copy = f"reference to T1 {t1_id}", 0
        case AwaitSync(sp, volume_id) | AwaitLease(sp, volume_id):
            words, copy = f"volume {volume_id}", 0
        case Copy(sp, volume_id, _, path, copy):
            place = ".".join(str(index) for index in path)
            words = f"leg {place} of {volume_id}" if path else f"legs of {volume_id}"
        case Forget(volume_id):
            sp, words, copy = SpId(""), f"volume {volume_id}", 0
    if isinstance(step, Copy) and not step.path:
        return "verify", sp, words, copy
    return kind(step), sp, words, copy


def step_to_json(step: Step) -> Json:
    """A step as plain JSON values: its kind and its fields."""
    body: Json
    match step:
        case PutT1(t1, epoch) | AdoptT1(t1, epoch):
            body = {"t1": t1_to_json(t1), "epoch": epoch}
        case FenceT1(sp, t1_id, epoch, known):
            body = {"sp": sp, "t1": t1_id, "epoch": epoch, "known": known}
        case DeleteT1(sp, t1_id, epoch):
            body = {"sp": sp, "t1": t1_id, "epoch": epoch}
        case StageT2(t2):
            body = {"t2": t2_to_json(t2)}
        case Commit(volume):
            body = {"volume": volume_to_json(volume)}
        case ActivateT2(sp, volume_id, version) | RemoveT2(sp, volume_id, version):
            body = {"sp": sp, "volume": volume_id, "version": version}
        case AwaitSync(sp, volume_id) | AwaitLease(sp, volume_id):
            body = {"sp": sp, "volume": volume_id}
        case DropReference(sp, volume_id, t1_id):
            body = {"sp": sp, "volume": volume_id, "t1": t1_id}
        case Copy(sp, volume_id, version, path, size, mode):
            body = {
                "sp": sp,
                "volume": volume_id,
                "version": version,
                "path": list(path),
                "bytes": size,
                "mode": mode.value,
            }
        case Forget(volume_id):
            body = {"volume": volume_id}
    return {"kind": kind(step), **body}


def step_from_json(value: object, where: str = "step") -> Step:
    """A step from plain JSON values."""
    fields = Fields(value, where)
    step: Step
    match fields.text("kind"):
        case "put_t1":
            step = PutT1(t1_from_json(fields.take("t1"), fields.path("t1")), fields.number("epoch"))
        case "adopt_t1":
            step = AdoptT1(
                t1_from_json(fields.take("t1"), fields.path("t1")), fields.number("epoch")
            )
        case "fence_t1":
            step = FenceT1(_sp(fields), _t1(fields), fields.number("epoch"), fields.number("known"))
        case "delete_t1":
            step = DeleteT1(_sp(fields), _t1(fields), fields.number("epoch"))
        case "stage_t2":
            step = StageT2(t2_from_json(fields.take("t2"), fields.path("t2")))
        case "commit":
            step = Commit(volume_from_json(fields.take("volume"), fields.path("volume")))
        case "activate_t2":
            step = ActivateT2(_sp(fields), _volume(fields), fields.number("version"))
        case "remove_t2":
            step = RemoveT2(_sp(fields), _volume(fields), fields.number("version"))
        case "drop_reference":
            step = DropReference(_sp(fields), _volume(fields), _t1(fields))
        case "await_sync":
            step = AwaitSync(_sp(fields), _volume(fields))
        case "await_lease":
            step = AwaitLease(_sp(fields), _volume(fields))
        case "copy":
            step = Copy(
                _sp(fields),
                _volume(fields),
                fields.number("version"),
                fields.items("path", _index),
                fields.number("bytes"),
                fields.one_of("mode", CopyMode),
            )
        case "forget":
            step = Forget(_volume(fields))
        case other:
            raise malformed(fields.path("kind"), f"is not a known step: {other!r}")
    fields.done()
    return step


def plan_to_json(plan: Plan) -> Json:
    """A plan as plain JSON values."""
    return {
        "base": None if plan.base is None else volume_to_json(plan.base),
        "steps": [step_to_json(step) for step in plan.steps],
        "no_return": plan.no_return,
        "groups": [list(group) for group in plan.groups],
    }


def plan_from_json(value: object, where: str = "plan") -> Plan:
    """A plan from plain JSON values."""
    fields = Fields(value, where)
    base = fields.take("base")
    plan = Plan(
        base=None if base is None else volume_from_json(base, fields.path("base")),
        steps=fields.items("steps", step_from_json),
        no_return=fields.number("no_return"),
        groups=fields.items("groups", _group),
    )
    fields.done()
    return plan


def encode_step(step: Step) -> str:
    """A step as JSON text."""
    return dumps(step_to_json(step))


def decode_step(text: str) -> Step:
    """A step from JSON text; VsError VS1020 names the field that is wrong."""
    return step_from_json(loads(text, "step"))


def encode_plan(plan: Plan) -> str:
    """A plan as JSON text."""
    return dumps(plan_to_json(plan))


def decode_plan(text: str) -> Plan:
    """A plan from JSON text; VsError VS1020 names the field that is wrong."""
    return plan_from_json(loads(text, "plan"))


def _sp(fields: Fields) -> SpId:
    return SpId(fields.text("sp"))


def _t1(fields: Fields) -> T1Id:
    return T1Id(fields.text("t1"))


def _volume(fields: Fields) -> VolumeId:
    return VolumeId(fields.text("volume"))


def _index(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise malformed(where, f"an index was expected, not {value!r}")
    return value


def _group(value: object, where: str) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise malformed(where, "a pair of indices was expected")
    return _index(value[0], f"{where}[0]"), _index(value[1], f"{where}[1]")
