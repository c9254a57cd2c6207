"""What a host tells of its attachments."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vswitchd.host.service import Host

PREFIX = "vswitchd_"


class HostCollector(Collector):
    """Looks at every scrape."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily(
            PREFIX + "host_attachment_info", "1", labels=["volume", "volume_id", "device"]
        )
        size = GaugeMetricFamily(
            PREFIX + "host_device_size_bytes", "Of the device.", labels=["volume"]
        )
        paths = GaugeMetricFamily(
            PREFIX + "host_paths",
            "SPs that serve the volume, connected or not.",
            labels=["volume", "state"],
        )
        wrong = GaugeMetricFamily(
            PREFIX + "host_attachment_failed",
            "1 if something is wrong that does not mend by itself; `vswitchctl host list` says it.",
            labels=["volume"],
        )
        waiting = GaugeMetricFamily(
            PREFIX + "host_attachments_waiting",
            "Volumes of hosttab that could not be attached yet.",
        )
        again = CounterMetricFamily(
            PREFIX + "host_reconnections",
            "Connections given to the kernel later.",
            labels=["volume"],
        )
        failures = CounterMetricFamily(
            PREFIX + "host_connection_failures", "Tries that came to nothing.", labels=["volume"]
        )
        for volume, kept in self._host.kept.items():
            attachment = kept.attachment
            info.add_metric([volume, attachment.volume_id, attachment.device], 1)
            size.add_metric([volume], kept.size)
            connected = sum(address.connected for address in kept.addresses.values())
            paths.add_metric([volume, "connected"], connected)
            paths.add_metric([volume, "missing"], len(kept.addresses) - connected)
            wrong.add_metric([volume], bool(kept.condition))
            again.add_metric([volume], kept.counters.reconnections)
            failures.add_metric([volume], kept.counters.failures)
        waiting.add_metric([], len(self._host.waiting))
        yield from (info, size, paths, wrong, waiting, again, failures)
