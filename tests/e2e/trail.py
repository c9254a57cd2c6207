"""What the SPs' VSMs were told, in order: the evidence of the orders that must hold.

Each VSM logs every call that it carried out as one JSON line whose `event` is the call's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.e2e.cluster import Cluster

CALLS = {
    *("put_t1", "adopt_t1", "fence_t1", "delete_t1"),
    *("stage_t2", "activate_t2", "remove_t2", "drop_reference"),
    *("start_copy", "stop_copy", "activate_mvsm", "deactivate_mvsm", "determine"),
}


@dataclass(frozen=True)
class Call:
    """One call that an SP's VSM carried out. `object` is a T1's id or a volume's."""

    name: str
    sp: str
    object: str
    version: int
    when: str


@dataclass
class Trail:
    """The calls made while the block ran, in order over all SPs."""

    calls: list[Call] = field(default_factory=list)

    def of(self, name: str, sp: str | None = None, object_id: str | None = None) -> list[int]:
        """Where such calls stand in the order."""
        return [
            index
            for index, call in enumerate(self.calls)
            if call.name == name
            and sp in (None, call.sp)
            and (object_id is None or object_id == call.object)
        ]

    def first(self, name: str, sp: str | None = None, object_id: str | None = None) -> int:
        """Where the first such call stands; AssertionError shows the whole trail."""
        found = self.of(name, sp, object_id)
        assert found, f"no {name} at {sp or 'any SP'} of {object_id or 'any object'} in\n{self}"
        return found[0]

    def last(self, name: str, sp: str | None = None, object_id: str | None = None) -> int:
        """Where the last such call stands."""
        self.first(name, sp, object_id)
        return self.of(name, sp, object_id)[-1]

    def __str__(self) -> str:
        return "\n".join(
            f"{index:3} {c.when} {c.sp} {c.name} {c.object} v{c.version}"
            for index, c in enumerate(self.calls)
        )


@contextmanager
def trail(cluster: Cluster) -> Iterator[Trail]:
    """Gathers the calls that the block causes."""
    marks = {name: len(sp.events()) for name, sp in cluster.sps.items()}
    found = Trail()
    yield found
    for name, sp in cluster.sps.items():
        for event in sp.events()[marks[name] :]:
            if event.get("event") in CALLS:
                found.calls.append(
                    Call(
                        name=str(event["event"]),
                        sp=name,
                        object=str(event.get("t1") or event.get("volume") or ""),
                        version=int(str(event.get("version") or 0)),
                        when=str(event["timestamp"]),
                    )
                )
    found.calls.sort(key=lambda call: call.when)
