"""The controller's Prometheus families."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Gauge, Histogram

from vswitchd.model.objects import LegState, Mirror, Volume, walk


class Metrics:
    """Set by the shell as things happen."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.store = Histogram(
            "vswitchd_store_request_duration_seconds",
            "One transaction of the store.",
            registry=registry,
        )
        self.step = Histogram(
            "vswitchd_operation_step_duration_seconds",
            "One step, its retries included.",
            ["step"],
            registry=registry,
        )
        self.operations = Gauge(
            "vswitchd_operations", "Open operations.", ["kind", "state"], registry=registry
        )
        self.copied = Gauge(
            "vswitchd_operation_copied_bytes", "Of open operations.", registry=registry
        )
        self.total = Gauge(
            "vswitchd_operation_total_bytes", "Of open operations.", registry=registry
        )
        self.age = Gauge(
            "vswitchd_operation_age_seconds", "Of the oldest open operation.", registry=registry
        )
        self.leader = Gauge(
            "vswitchd_controller_is_leader", "1 on the controller that acts.", registry=registry
        )
        self.leader.set(1)
        self.master = Gauge(
            "vswitchd_master_active",
            "1 for the SP whose MVSM is active.",
            ["sp"],
            registry=registry,
        )
        self.term = Gauge("vswitchd_term", "The leadership number.", registry=registry)
        self.processor_up = Gauge("vswitchd_sp_up", "1 while heard.", ["sp"], registry=registry)
        self.legs = Gauge(
            "vswitchd_volume_legs",
            "Legs of its mirrors, as the controller has them.",
            ["volume", "state"],
            registry=registry,
        )
        self.legs_desired = Gauge(
            "vswitchd_volume_legs_desired",
            "Legs of its mirrors, were all in sync.",
            ["volume"],
            registry=registry,
        )
        self.health = Gauge(
            "vswitchd_health_status", "0 OK, 1 warning, 2 error.", registry=registry
        )
        self.check = Gauge(
            "vswitchd_health_check", "1 while it holds.", ["code", "severity"], registry=registry
        )

    def set_legs(self, volumes: Sequence[Volume]) -> None:
        """Counts the legs of every mirror anew."""
        self.legs.clear()
        self.legs_desired.clear()
        for volume in volumes:
            legs = [
                leg.state
                for _, node in walk(volume.root)
                if isinstance(node, Mirror)
                for leg in node.legs
            ]
            for state in LegState if legs else ():
                self.legs.labels(volume.name, state.value).set(legs.count(state))
            if legs:
                self.legs_desired.labels(volume.name).set(len(legs))
