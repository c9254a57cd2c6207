"""The engine of `_engine.pyi` in memory: labels outlive it, everything else ends with it.

A `Disk` stands for the devices; several engines may share one, as SPs share devices.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from vswitchd._engine import EngineError

Json = dict[str, Any]
UNIT = 1 << 20
LABEL = 4 * UNIT
SIZE = 1 << 30


@dataclass
class Device:
    """A device's label."""

    cluster: str = ""
    id: str = ""
    checksums: bool = False
    #: T1 id to (T1 JSON, epoch).
    t1s: dict[str, tuple[Json, int]] = field(default_factory=dict)


@dataclass
class Disk:
    """Devices by URI. One that is taken out can't be opened."""

    devices: dict[str, Device] = field(default_factory=dict)


class FakeEngine:
    """One life of an engine. `busy` volumes do not drain: what would wait is a timeout."""

    def __init__(self, config: str, disk: Disk) -> None:
        settings = json.loads(config)
        self.cluster: str = settings["cluster_id"]
        self.sp: str = settings["sp"]
        self.disk = disk
        self.open: dict[str, str] = {}
        self.direct: set[str] = set()
        self.volumes: dict[str, Json] = {}
        self.resyncs: dict[str, int] = {}
        self.running: dict[tuple[str, tuple[int, ...]], Json] = {}
        self.limits: dict[tuple[str, tuple[int, ...]], tuple[int, bool]] = {}
        self.busy: set[str] = set()
        #: Who may use a volume; one that is not here is whoever's.
        self.accesses: dict[str, Json] = {}
        #: T1 objects that keep hosts waiting, and those in doubt.
        self.failing: set[str] = set()
        self.doubtful: set[str] = set()
        #: Every call that changes something, in order.
        self.calls: list[tuple[Any, ...]] = []

    def listen_nbd(self, address: str) -> str:
        return address.replace(":0", ":10809")

    def listen_peer(self, address: str) -> str:
        return address.replace(":0", ":9460")

    def shutdown(self, seconds: float) -> bool:
        return not self.busy

    # Devices.

    def device_add(
        self, uri: str, create_size: int, device_id: str, direct: bool, checksums: bool
    ) -> str:
        if uri not in self.disk.devices:
            if not create_size:
                raise EngineError("not_found", f"{uri}: open: no such file")
            self.disk.devices[uri] = Device()
        device = self.disk.devices[uri]
        if device.cluster not in ("", self.cluster):
            raise EngineError("unsafe", f"{uri}: belongs to cluster {device.cluster}")
        if not device.cluster:
            if not device_id:
                raise EngineError("unsafe", f"{uri}: is blank")
            device.cluster, device.id, device.checksums = self.cluster, device_id, checksums
        if checksums and not device.checksums:
            raise EngineError("unlike", f"{uri}: is labelled without checksums")
        self.open[device.id] = uri
        (self.direct.add if direct else self.direct.discard)(device.id)
        self.calls.append(("device_add", uri, device_id))
        return json.dumps(self._device(device.id))

    def _device(self, device_id: str) -> Json:
        uri = self.open[device_id]
        end = max(
            (
                extent["offset"] + extent["length"]
                for t1, _ in self.disk.devices[uri].t1s.values()
                for extent in t1["extents"]
            ),
            default=LABEL,
        )
        free = [{"device": "", "offset": end, "length": SIZE - end}]
        shape = {"id": device_id, "uri": uri, "size": SIZE, "unit": UNIT}
        shape |= {"direct": device_id in self.direct, "checksums": self.disk.devices[uri].checksums}
        return {**shape, "up": True, "free": free, "error": ""}

    def device_remove(self, device_id: str) -> None:
        if any(self._label(device_id).t1s):
            raise EngineError("precondition", f"device {device_id} holds a T1 object")
        self.open.pop(device_id, None)

    def _label(self, device_id: str) -> Device:
        if device_id not in self.open:
            raise EngineError("not_found", f"device {device_id} is not here")
        return self.disk.devices[self.open[device_id]]

    def devices(self) -> str:
        return json.dumps([self._device(device_id) for device_id in sorted(self.open)])

    # T1 objects.

    def _here(self) -> dict[str, tuple[Json, int]]:
        return {
            t1_id: entry
            for device_id in self.open
            for t1_id, entry in self._label(device_id).t1s.items()
            if entry[0]["home"] == self.sp
        }

    def _write(self, t1: Json, epoch: int) -> None:
        for device_id in {extent["device"] for extent in t1["extents"]}:
            self._label(device_id).t1s[t1["id"]] = (t1, epoch)

    def t1_put(self, t1: str, epoch: int) -> None:
        value = json.loads(t1)
        if value["home"] != self.sp:
            raise EngineError("invalid", f"T1 object {value['id']}: its home is {value['home']}")
        self._write(value, epoch)
        self.calls.append(("t1_put", value["id"], epoch))

    def t1_adopt(self, t1: str, epoch: int) -> None:
        value = json.loads(t1)
        for extent in value["extents"]:
            if value["id"] not in self._label(extent["device"]).t1s:
                raise EngineError("not_found", f"T1 object {value['id']} is not there")
        self._write(value, epoch)
        self.calls.append(("t1_adopt", value["id"], epoch))

    def t1_fence(self, t1_id: str, epoch: int, from_epoch: int | None, seconds: float) -> None:
        if t1_id not in self._here():
            raise EngineError("not_found", f"T1 object {t1_id} is not homed here")
        t1, old = self._here()[t1_id]
        if epoch < old:
            raise EngineError("stale", f"T1 object {t1_id} is at epoch {old}")
        if from_epoch is not None and (old not in (from_epoch, epoch) or t1_id in self.doubtful):
            raise EngineError("stale", f"T1 object {t1_id} is not at epoch {from_epoch}")
        if t1["volume"] in self.busy:
            raise EngineError("timeout", f"T1 object {t1_id}: its I/O does not end")
        self._write(t1, epoch)
        self.calls.append(("t1_fence", t1_id, epoch))

    def trouble(self) -> str:
        doubtful = {t1: self._here()[t1][1] for t1 in self.doubtful}
        return json.dumps({"failing": sorted(self.failing), "doubtful": doubtful})

    def t1_delete(self, t1_id: str, epoch: int) -> None:
        if t1_id in self._here() and self._here()[t1_id][1] > epoch:
            raise EngineError("stale", f"T1 object {t1_id} is at a higher epoch")
        for device_id in self.open:
            label = self._label(device_id)
            if t1_id in label.t1s and label.t1s[t1_id][0]["home"] == self.sp:
                del label.t1s[t1_id]
        self.calls.append(("t1_delete", t1_id))

    def t1s(self, volume_id: str) -> str:
        every = [{"t1": t1, "epoch": epoch} for t1, epoch in self._here().values()]
        shown = [one for one in every if volume_id in ("", one["t1"]["volume"])]
        return json.dumps({"t1s": shown, "others": len(every) - len(shown)})

    # T2 objects.

    def access_set(self, volume_id: str, access: str) -> None:
        self.accesses[volume_id] = json.loads(access)
        self.calls.append(("access_set", volume_id))

    def t2_activate(self, t2: str, resync: bool, seconds: float) -> int:
        value = json.loads(t2)
        volume = value["volume"]
        old = self.volumes.get(volume)
        if old is not None:
            if (value["version"], value["epoch"]) < (old["version"], old["epoch"]):
                raise EngineError("stale", f"volume {value['name']}: older")
            if volume in self.busy:
                raise EngineError("timeout", "requests in flight did not end in time; try again")
        self.volumes[volume] = value
        if resync and value["owner"] == self.sp:
            self.resyncs[volume] = 0
        self.calls.append(("t2_activate", volume, value["version"], resync))
        return 0 if old is None else 1234

    def t2_remove(self, volume_id: str, seconds: float) -> None:
        self.accesses.pop(volume_id, None)
        if volume_id in self.busy:
            raise EngineError("timeout", "requests in flight did not end in time; try again")
        self.volumes.pop(volume_id, None)
        self.calls.append(("t2_remove", volume_id))

    def t2s(self, volume_id: str) -> str:
        return json.dumps(
            [
                {
                    "volume": volume,
                    "version": t2["version"],
                    "epoch": t2["epoch"],
                    "resync_percent": self.resyncs.get(volume, 100),
                }
                for volume, t2 in self.volumes.items()
                if volume_id in ("", volume)
            ]
        )

    def reference_drop(self, volume_id: str, t1_id: str) -> None:
        if t1_id in json.dumps(self.volumes.get(volume_id, {}).get("root")):
            raise EngineError("precondition", f"its tree still refers to {t1_id}")
        self.calls.append(("reference_drop", volume_id, t1_id))

    # Copies.

    def copy_start(
        self,
        volume_id: str,
        path: list[int],
        start: int,
        rate: int,
        adaptive: bool,
        mode: str,
    ) -> None:
        if volume_id not in self.volumes:
            raise EngineError("not_found", f"volume {volume_id} is not served here")
        view = {"volume": volume_id, "path": path, "state": "running"}
        more = {"copied": start + UNIT, "total": 4 * UNIT, "error": "", "durable": start, "rate": 0}
        more |= {"mode": mode, "differing_bytes": 0, "differing": []}
        self.running.setdefault((volume_id, tuple(path)), {**view, **more})
        self.limits[volume_id, tuple(path)] = rate, adaptive

    def copy_throttle(self, volume_id: str, path: list[int], rate: int, adaptive: bool) -> None:
        if (volume_id, tuple(path)) not in self.running:
            raise EngineError("not_found", f"volume {volume_id}: no such copy runs")
        self.limits[volume_id, tuple(path)] = rate, adaptive

    def labels(self) -> str:
        return json.dumps(
            [
                {
                    "device": device_id,
                    "uri": uri,
                    "cluster": self.disk.devices[uri].cluster,
                    "generation": 1,
                    "copies": 2,
                    "t1s": [
                        {"t1": t1, "epoch": epoch}
                        for t1, epoch in self.disk.devices[uri].t1s.values()
                    ],
                    "error": "",
                }
                for device_id, uri in sorted(self.open.items())
            ]
        )

    def copy_stop(self, volume_id: str, path: list[int]) -> None:
        self.running.pop((volume_id, tuple(path)), None)

    def copies(self) -> str:
        return json.dumps(list(self.running.values()))

    def metrics(self) -> str:
        empty = {"volumes": [], "devices": [], "peers": [], "sessions": {}, "logins_failed": {}}
        counts = {"protocol_errors": 0, "fencing_rejections": 0, "resident_bytes": 0}
        return json.dumps({**empty, **counts})
