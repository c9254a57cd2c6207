"""What a process tells about itself is what others can read."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vswitchd.errors import Kind, VsError
from vswitchd.obs import daemon, log
from vswitchd.obs.engine_metrics import EngineCollector
from vswitchd.obs.http import Web


def histogram(*counts: int) -> dict[str, object]:
    return {"le": [0.001, 0.1], "counts": list(counts), "sum": 0.5}


#: As the engine's `metrics()` gives it (docs/engine.md).
ENGINE = {
    "volumes": [
        {
            "volume": "v-1",
            "name": "db",
            "size": 4096,
            "version": 3,
            "epoch": 5,
            "copied_bytes": 77,
            "healed_bytes": 4096,
            "dirty_bytes": 1 << 20,
            "outofsync_bytes": 0,
            "inflight": 2,
            "operations": {"read": {"nbd_tcp": 7, "peer": 1}, "flush": {"nbd_unix": 1}},
            "bytes": {"read": 1000, "write": 0},
            "errors": {"write": {"io": 4}},
            "duration": {"read": histogram(1, 2, 3)},
            "pause": histogram(0, 1, 0),
        }
    ],
    "devices": [
        {
            "id": "d-0",
            "operations": {"read": 5},
            "bytes": {"read": 50},
            "errors": {"read": 1},
            "checksum_errors": 6,
            "flush": histogram(1, 0, 0),
        }
    ],
    "peers": [{"sp": "sp-b", "up": True, "round_trip": histogram(2, 0, 0)}],
    "sessions": {"nbd_tcp": 3},
    "protocol_errors": 1,
    "logins_failed": {"authentication": 2},
    "fencing_rejections": 9,
    "resident_bytes": 1048576,
}

EXPECTED = {
    ("vswitchd_volume_size_bytes", ("volume", "db")): 4096,
    ("vswitchd_volume_tree_version", ("volume", "db")): 3,
    ("vswitchd_volume_fence_epoch", ("volume", "db")): 5,
    ("vswitchd_volume_inflight_requests", ("volume", "db")): 2,
    ("vswitchd_volume_io_operations_total", ("transport", "nbd_tcp")): 7,
    ("vswitchd_volume_io_bytes_total", ("op", "read")): 1000,
    ("vswitchd_volume_io_errors_total", ("kind", "io")): 4,
    ("vswitchd_volume_io_duration_seconds_count", ("op", "read")): 6,
    ("vswitchd_volume_io_duration_seconds_sum", ("op", "read")): 0.5,
    ("vswitchd_volume_pause_duration_seconds_count", ("volume", "db")): 1,
    ("vswitchd_device_size_bytes", ("device", "d-0")): 100,
    ("vswitchd_device_allocated_bytes", ("device", "d-0")): 40,
    ("vswitchd_device_up", ("device", "d-0")): 1,
    ("vswitchd_device_io_operations_total", ("op", "read")): 5,
    ("vswitchd_device_io_bytes_total", ("op", "read")): 50,
    ("vswitchd_device_errors_total", ("op", "read")): 1,
    ("vswitchd_device_checksum_errors_total", ("device", "d-0")): 6,
    ("vswitchd_device_flush_duration_seconds_count", ("device", "d-0")): 1,
    ("vswitchd_peer_up", ("peer", "sp-b")): 1,
    ("vswitchd_peer_round_trip_seconds_count", ("peer", "sp-b")): 2,
    ("vswitchd_sessions", ("transport", "nbd_tcp")): 3,
    ("vswitchd_protocol_errors_total", None): 1,
    ("vswitchd_logins_failed_total", ("reason", "authentication")): 2,
    ("vswitchd_fencing_rejections_total", None): 9,
    ("vswitchd_resident_bytes", None): 1048576,
}


class Page:
    """The server with its three pages; `fault` makes a scrape fail."""

    def __init__(self) -> None:
        self.ready = False
        self.fault: VsError | None = None
        registry = daemon.registry()
        registry.register(EngineCollector(self._metrics, lambda: [("d-0", 100, 40, True)]))
        self.web = Web(registry, lambda: self.ready)
        self.address = ""

    def _metrics(self) -> dict[str, object]:
        if self.fault:
            raise self.fault
        return ENGINE

    async def ask(self, request: bytes) -> tuple[int, str]:
        host, _, port = self.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(10):
            writer.write(request)
            await writer.drain()
            whole = await reader.read()
        writer.close()
        head, _, body = whole.decode().partition("\r\n\r\n")
        return int(head.split()[1]), body

    async def get(self, path: str) -> tuple[int, str]:
        return await self.ask(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    one = Page()
    one.address = await one.web.start("127.0.0.1:0")
    yield one
    await one.web.stop()


def test_a_pause_that_never_was_is_not_told() -> None:
    """A thousand volumes' empty histograms would be most of a scrape."""
    (db,) = cast(list[dict[str, object]], ENGINE["volumes"])
    still = {**db, "name": "still", "pause": {**histogram(0, 0, 0), "sum": 0.0}}
    families = EngineCollector(lambda: {**ENGINE, "volumes": [db, still]}, list).collect()
    named = {
        family.name: {sample.labels.get("volume") for sample in family.samples}
        for family in families
    }
    assert named["vswitchd_volume_pause_duration_seconds"] == {"db"}
    assert named["vswitchd_volume_size_bytes"] == {"db", "still"}


async def test_metrics_parse_and_have_the_names_of_the_product(page: Page) -> None:
    status, text = await page.get("/metrics?name=x")
    assert status == 200
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.name.startswith("vswitchd_")
        assert family.documentation
        for sample in family.samples:
            for label in sample.labels.items():
                found[sample.name, label] = sample.value
            if not sample.labels:
                found[sample.name, None] = sample.value
    for key, value in EXPECTED.items():
        assert found.get(key) == value, key
    # Buckets are cumulative.
    assert found["vswitchd_volume_io_duration_seconds_bucket", ("le", "0.001")] == 1
    assert found["vswitchd_volume_io_duration_seconds_bucket", ("le", "0.1")] == 3
    assert found["vswitchd_volume_io_duration_seconds_bucket", ("le", "+Inf")] == 6
    assert ("vswitchd_build_info", ("version", "0.1.0")) in found


async def test_health_pages(page: Page) -> None:
    assert (await page.get("/livez"))[0] == 200
    assert (await page.get("/readyz"))[0] == 503
    page.ready = True
    assert (await page.get("/readyz"))[0] == 200
    assert (await page.get("/elsewhere"))[0] == 404


async def test_a_scrape_that_fails_is_a_500_and_the_server_goes_on(page: Page) -> None:
    page.fault = VsError("VS5010", Kind.TIMEOUT, "a loop does not answer")
    status, text = await page.get("/metrics")
    assert status == 500
    assert "a loop does not answer" in text
    page.fault = None
    assert (await page.get("/metrics"))[0] == 200


@pytest.mark.parametrize(
    "junk", [b"\0" * 9000 + b"\r\n\r\n", b"GET\r\n\r\n", b"POST /metrics HTTP/1.1\r\n\r\n"]
)
async def test_junk_is_answered_or_hung_up_on(page: Page, junk: bytes) -> None:
    try:
        status, _ = await page.ask(junk)
        assert status in (400, 404, 405)
    except (ConnectionError, IndexError):
        pass
    assert (await page.get("/livez"))[0] == 200


async def test_a_port_in_use_is_said(page: Page) -> None:
    with pytest.raises(VsError, match=r"VS3030.*metrics"):
        await Web(daemon.registry(), lambda: True).start(page.address)
    with pytest.raises(VsError, match="VS1041"):
        await Web(daemon.registry(), lambda: True).start("nonsense")


def test_logs_are_one_json_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    logger = log.set_up("info").bind(sp="sp-a")
    logger.debug("unheard")
    logger.info("stage_t2", volume="v-1", version=3)
    try:
        raise ValueError("oops")
    except ValueError:
        logger.exception("bug")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["stage_t2", "bug"]
    first = lines[0]
    assert (first["sp"], first["volume"], first["version"]) == ("sp-a", "v-1", 3)
    assert first["level"] == "info"
    assert first["timestamp"].endswith("Z")
    assert "oops" in json.dumps(lines[1])
    with pytest.raises(VsError, match="VS1040"):
        log.set_up("loud")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_fault_is_logged_without_what_variables_held(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    logger = log.set_up("info")

    def at_work(secret: str) -> None:
        raise ValueError(f"of {len(secret)} bytes")

    try:
        at_work("hidden" + "-secret")
    except ValueError as error:
        logger.error("fault", exc_info=error)
    told = capsys.readouterr().err
    assert "at_work" in told and "of 13 bytes" in told
    # A terminal is shown lines of the source, too.
    assert "hidden-secret" not in told
