"""The engine's counters as Prometheus families (interfaces: the names are the product's)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

Json = dict[str, Any]
PREFIX = "vswitchd_"


def _histogram(family: HistogramMetricFamily, labels: list[str], value: Json) -> None:
    total, buckets = 0, []
    for bound, count in zip([*map(str, value["le"]), "+Inf"], value["counts"], strict=True):
        total += count
        buckets.append((bound, total))
    family.add_metric(labels, buckets, value["sum"])


class EngineCollector(Collector):
    """Asks for the counters at every scrape."""

    def __init__(
        self, metrics: Callable[[], Json], devices: Callable[[], list[tuple[str, int, int, bool]]]
    ) -> None:
        """`devices` gives (id, size, allocated, up) of each device."""
        self._metrics = metrics
        self._devices = devices

    def collect(self) -> Iterator[Metric]:
        found = self._metrics()
        yield from self._volumes(found["volumes"])
        yield from self._device_families(found["devices"])
        yield from self._others(found)

    def _volumes(self, volumes: list[Json]) -> Iterator[Metric]:
        info = GaugeMetricFamily(PREFIX + "volume_info", "1", labels=["volume", "volume_id"])
        plain = {
            field: GaugeMetricFamily(PREFIX + name, text, labels=["volume"])
            for field, name, text in (
                ("size", "volume_size_bytes", "What hosts see."),
                ("version", "volume_tree_version", "Rises at every restructure."),
                ("epoch", "volume_fence_epoch", "The epoch of the tree in use here."),
                ("inflight", "volume_inflight_requests", "Requests begun and not answered."),
                ("dirty_bytes", "volume_dirty_bytes", "Of legs here, in the write-intent map."),
                (
                    "outofsync_bytes",
                    "volume_outofsync_bytes",
                    "At the owner: of those, while a leg lacks something or a resync is under way.",
                ),
            )
        }
        operations = CounterMetricFamily(
            PREFIX + "volume_io_operations",
            "Requests answered with success.",
            labels=["volume", "op", "transport"],
        )
        moved = CounterMetricFamily(
            PREFIX + "volume_io_bytes", "Bytes of those requests.", labels=["volume", "op"]
        )
        copied = CounterMetricFamily(
            PREFIX + "volume_copied_bytes",
            "Written by copies and resyncs; regions that were alike are passed over.",
            labels=["volume"],
        )
        healed = CounterMetricFamily(
            PREFIX + "volume_healed_bytes",
            "Could not be read from one leg, and were written to it again from another.",
            labels=["volume"],
        )
        errors = CounterMetricFamily(
            PREFIX + "volume_io_errors",
            "Requests answered with an error.",
            labels=["volume", "op", "kind"],
        )
        duration = HistogramMetricFamily(
            PREFIX + "volume_io_duration_seconds",
            "From receipt to answer.",
            labels=["volume", "op"],
        )
        pause = HistogramMetricFamily(
            PREFIX + "volume_pause_duration_seconds",
            "How long swaps of the tree held requests.",
            labels=["volume"],
        )
        for volume in volumes:
            name = volume["name"]
            info.add_metric([name, volume["volume"]], 1)
            for field, family in plain.items():
                family.add_metric([name], volume[field])
            for op, transports in volume["operations"].items():
                for transport, count in transports.items():
                    operations.add_metric([name, op, transport], count)
            for op, count in volume["bytes"].items():
                moved.add_metric([name, op], count)
            copied.add_metric([name], volume["copied_bytes"])
            healed.add_metric([name], volume["healed_bytes"])
            for op, kinds in volume["errors"].items():
                for kind, count in kinds.items():
                    errors.add_metric([name, op, kind], count)
            for op, histogram in volume["duration"].items():
                _histogram(duration, [name, op], histogram)
            if any(volume["pause"]["counts"]):
                # With a thousand volumes most of a scrape would be histograms of nothing.
                _histogram(pause, [name], volume["pause"])
        yield from (info, *plain.values(), operations, moved, copied, healed, errors)
        yield from (duration, pause)

    def _device_families(self, counters: list[Json]) -> Iterator[Metric]:
        size = GaugeMetricFamily(PREFIX + "device_size_bytes", "Usable.", labels=["device"])
        allocated = GaugeMetricFamily(
            PREFIX + "device_allocated_bytes",
            "In extents, the label and checksums.",
            labels=["device"],
        )
        up = GaugeMetricFamily(PREFIX + "device_up", "1 if it can be used.", labels=["device"])
        for device, bytes_, taken, alive in self._devices():
            size.add_metric([device], bytes_)
            allocated.add_metric([device], taken)
            up.add_metric([device], int(alive))
        operations = CounterMetricFamily(
            PREFIX + "device_io_operations", "I/O done.", labels=["device", "op"]
        )
        moved = CounterMetricFamily(
            PREFIX + "device_io_bytes", "Bytes of it.", labels=["device", "op"]
        )
        errors = CounterMetricFamily(
            PREFIX + "device_errors", "I/O that failed.", labels=["device", "op"]
        )
        rotten = CounterMetricFamily(
            PREFIX + "device_checksum_errors",
            "Blocks of 4 KiB that were read and did not match, of devices with checksums.",
            labels=["device"],
        )
        flush = HistogramMetricFamily(
            PREFIX + "device_flush_duration_seconds",
            "fdatasync, as its waiters saw it.",
            labels=["device"],
        )
        for one in counters:
            for op, count in one["operations"].items():
                operations.add_metric([one["id"], op], count)
            for op, count in one["bytes"].items():
                moved.add_metric([one["id"], op], count)
            for op, count in one["errors"].items():
                errors.add_metric([one["id"], op], count)
            if one["checksum_errors"] is not None:
                rotten.add_metric([one["id"]], one["checksum_errors"])
            _histogram(flush, [one["id"]], one["flush"])
        yield from (size, allocated, up, operations, moved, errors, rotten, flush)

    def _others(self, found: Json) -> Iterator[Metric]:
        up = GaugeMetricFamily(PREFIX + "peer_up", "1 with a session.", labels=["peer"])
        trip = HistogramMetricFamily(
            PREFIX + "peer_round_trip_seconds", "Request to reply.", labels=["peer"]
        )
        for peer in found["peers"]:
            up.add_metric([peer["sp"]], int(peer["up"]))
            _histogram(trip, [peer["sp"]], peer["round_trip"])
        sessions = GaugeMetricFamily(PREFIX + "sessions", "Open now.", labels=["transport"])
        for transport, count in found["sessions"].items():
            sessions.add_metric([transport], count)
        protocol = CounterMetricFamily(
            PREFIX + "protocol_errors", "Connections that broke their protocol."
        )
        protocol.add_metric([], found["protocol_errors"])
        refused = CounterMetricFamily(
            PREFIX + "logins_failed", "iSCSI logins that were refused.", labels=["reason"]
        )
        for reason, count in found["logins_failed"].items():
            refused.add_metric([reason], count)
        fenced = CounterMetricFamily(PREFIX + "fencing_rejections", "I/O refused for its epoch.")
        fenced.add_metric([], found["fencing_rejections"])
        resident = GaugeMetricFamily(
            PREFIX + "resident_bytes", "Of devices, mapped and locked in memory."
        )
        resident.add_metric([], found["resident_bytes"])
        yield from (up, trip, sessions, protocol, refused, fenced, resident)
