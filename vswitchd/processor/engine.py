"""The engine behind awaitable calls and the model's values. The only importer of `_engine`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from vswitchd._engine import Engine as Native
from vswitchd._engine import EngineError
from vswitchd.errors import Kind, VsError
from vswitchd.model.access import Access, encode_access
from vswitchd.model.codec import encode_t1, encode_t2, t1_from_json
from vswitchd.model.objects import T1, T2, DeviceId, Extent, Path, T1Id, VolumeId
from vswitchd.model.view import (
    Complaint,
    CopyMode,
    CopyState,
    CopyView,
    DeviceView,
    DifferingRange,
    LabelView,
    T1View,
)
from vswitchd.processor.handover import Legacy, Listener, Session

R = TypeVar("R")

#: Seconds until a drain gives up; the caller tries again.
DRAIN = 20.0
#: Threads that wait for the engine at the same time.
WAITERS = 16

_CODES = {
    Kind.INVALID: "VS1030",
    Kind.NOT_FOUND: "VS2020",
    Kind.EXISTS: "VS2021",
    Kind.PRECONDITION: "VS3021",
    Kind.STALE: "VS3022",
    Kind.NO_SPACE: "VS4020",
    Kind.TIMEOUT: "VS5010",
    Kind.UNSAFE: "VS6020",
}
#: Kinds of the engine's own.
_UNLIKE = "unlike"


class Engine:
    """One native engine. Calls wait on threads, never in the event loop."""

    def __init__(self, config: dict[str, object]) -> None:
        self._threads = ThreadPoolExecutor(WAITERS, thread_name_prefix="engine")
        self._native = self._checked(Native, json.dumps(config))

    @staticmethod
    def _checked(call: Callable[..., R], *args: Any) -> R:
        try:
            return call(*args)
        except EngineError as error:
            if error.args[0] == _UNLIKE:
                raise VsError("VS3029", Kind.PRECONDITION, str(error.args[1])) from None
            kind = Kind(error.args[0])
            raise VsError(_CODES.get(kind, "VS9021"), kind, str(error.args[1])) from None

    async def _wait(self, call: Callable[..., R], *args: Any) -> R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: self._checked(call, *args))

    def listen_nbd(self, address: str) -> str:
        """Serves NBD there; returns the bound address."""
        return self._checked(self._native.listen_nbd, address)

    def listen_iscsi(self, address: str) -> str:
        """Serves iSCSI there; returns the bound address."""
        return self._checked(self._native.listen_iscsi, address)

    def set_portal_group(self, tag: int, advertised: str) -> None:
        """What iSCSI portals say of themselves; `advertised` empty: where initiators have come."""
        self._native.set_portal_group(tag, advertised)

    def listen_peer(self, address: str) -> str:
        """Serves peers there; returns the bound address."""
        return self._checked(self._native.listen_peer, address)

    def take_listener(self, fd: int, speaks: str) -> str:
        """Serves "nbd", "iscsi" or "peer" on a socket that listens already, the engine's from now
        on; its address."""
        return self._checked(self._native.take_listener, fd, speaks)

    def take_session(self, session: Session) -> None:
        """Goes on with a host's session of the process before this one."""
        self._checked(self._native.take_session, session.fd, session.facts, session.unread)

    def metrics(self) -> dict[str, Any]:
        """The engine's counters."""
        found: dict[str, Any] = json.loads(self._checked(self._native.metrics))
        return found

    async def shutdown(self, seconds: float) -> bool:
        """Ends; True if all requests were answered and flushed in time."""
        clean = await self._wait(self._native.shutdown, seconds)
        self._threads.shutdown(wait=False)
        return clean

    async def hand_over(self, seconds: float) -> tuple[bool, Legacy]:
        """Ends like `shutdown`, and gives the listeners and the hosts' sessions."""
        clean, listeners, sessions = await self._wait(self._native.hand_over, seconds)
        self._threads.shutdown(wait=False)
        legacy = Legacy()
        legacy.listeners = [Listener(*one) for one in listeners]
        legacy.sessions = [Session(*one) for one in sessions]
        return clean, legacy

    async def device_add(
        self, uri: str, size: int, device: DeviceId, *, direct: bool, checksums: bool
    ) -> DeviceView:
        found = await self._wait(self._native.device_add, uri, size, device, direct, checksums)
        return _device(json.loads(found))

    async def device_remove(self, device: DeviceId) -> None:
        await self._wait(self._native.device_remove, device)

    async def devices(self) -> tuple[DeviceView, ...]:
        return tuple(map(_device, json.loads(await self._wait(self._native.devices))))

    async def t1_put(self, t1: T1, epoch: int) -> None:
        await self._wait(self._native.t1_put, encode_t1(t1), epoch)

    async def t1_adopt(self, t1: T1, epoch: int) -> None:
        await self._wait(self._native.t1_adopt, encode_t1(t1), epoch)

    async def t1_fence(self, t1: T1Id, epoch: int, base: int | None) -> None:
        """With `base` only if it is at just that epoch."""
        await self._wait(self._native.t1_fence, t1, epoch, base, DRAIN)

    async def t1_delete(self, t1: T1Id, epoch: int) -> None:
        await self._wait(self._native.t1_delete, t1, epoch)

    async def t1s(self, volume: VolumeId | None = None) -> tuple[tuple[T1View, ...], int]:
        """Those of the volume (None: all), and how many others there are."""
        found = json.loads(await self._wait(self._native.t1s, volume or ""))
        views = (T1View(t1_from_json(one["t1"]), one["epoch"]) for one in found["t1s"])
        return tuple(views), found["others"]

    async def access_set(self, volume: VolumeId, access: Access) -> None:
        await self._wait(self._native.access_set, volume, encode_access(access))

    async def t2_activate(self, t2: T2, *, resync: bool) -> int:
        """Returns the pause in microseconds."""
        return await self._wait(self._native.t2_activate, encode_t2(t2), resync, DRAIN)

    async def t2_remove(self, volume: VolumeId) -> None:
        await self._wait(self._native.t2_remove, volume, DRAIN)

    async def resync_percents(self, volume: VolumeId | None = None) -> dict[VolumeId, int]:
        """For every active volume, or for that one if it is active, how far its resync is; 100
        when there is none."""
        found = json.loads(await self._wait(self._native.t2s, volume or ""))
        return {VolumeId(one["volume"]): one["resync_percent"] for one in found}

    async def trouble(self) -> Complaint:
        """The T1 objects that fail or are in doubt."""
        found = json.loads(await self._wait(self._native.trouble))
        doubtful = {T1Id(t1): epoch for t1, epoch in found["doubtful"].items()}
        return Complaint(frozenset(map(T1Id, found["failing"])), doubtful)

    async def reference_drop(self, volume: VolumeId, t1: T1Id) -> None:
        await self._wait(self._native.reference_drop, volume, t1)

    async def copy_start(
        self,
        volume: VolumeId,
        path: Path,
        *,
        start: int,
        rate: int,
        adaptive: bool,
        mode: CopyMode,
    ) -> None:
        await self._wait(
            self._native.copy_start, volume, list(path), start, rate, adaptive, mode.value
        )

    async def copy_throttle(
        self, volume: VolumeId, path: Path, *, rate: int, adaptive: bool
    ) -> None:
        await self._wait(self._native.copy_throttle, volume, list(path), rate, adaptive)

    async def copy_stop(self, volume: VolumeId, path: Path) -> None:
        await self._wait(self._native.copy_stop, volume, list(path))

    async def copies(self) -> tuple[CopyView, ...]:
        found = json.loads(await self._wait(self._native.copies))
        return tuple(
            CopyView(
                VolumeId(one["volume"]),
                tuple(one["path"]),
                CopyState(one["state"]),
                one["copied"],
                one["total"],
                one["error"],
                one["durable"],
                one["rate"],
                one["differing_bytes"],
                tuple(
                    DifferingRange(tuple(found["path"]), found["offset"], found["length"])
                    for found in one["differing"]
                ),
            )
            for one in found
        )

    async def labels(self) -> tuple[LabelView, ...]:
        """What the devices' labels say, read afresh."""
        found = json.loads(await self._wait(self._native.labels))
        return tuple(
            LabelView(
                device=DeviceId(one["device"]),
                uri=one["uri"],
                cluster=one["cluster"],
                generation=one["generation"],
                copies=one["copies"],
                t1s=tuple(T1View(t1_from_json(held["t1"]), held["epoch"]) for held in one["t1s"]),
                error=one["error"],
            )
            for one in found
        )


def _device(value: dict[str, Any]) -> DeviceView:
    device = DeviceId(value["id"])
    free = tuple(Extent(device, run["offset"], run["length"]) for run in value["free"])
    return DeviceView(
        id=device,
        uri=value["uri"],
        size=value["size"],
        unit=value["unit"],
        up=value["up"],
        free=free,
        error=value["error"],
        direct=value["direct"],
        checksums=value["checksums"],
    )
