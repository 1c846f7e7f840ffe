import json
import subprocess
import sys

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from shared.http.operations import OperationsApp
from shared.observability.health import Health
from shared.observability.tracing import (
    parse_traceparent,
    rebuilt_traceparent,
    traceparent,
)


def client(health: Health, metrics: CollectorRegistry) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=OperationsApp(health, metrics))  # pyright: ignore[reportArgumentType]
    return httpx.AsyncClient(transport=transport, base_url="http://ops")


async def test_health_says_what_stands_still() -> None:
    health, idle = Health(), 0.0
    health.progress("consumer", lambda: idle, 30)
    health.ready("kafka", lambda: None if idle == 0 else "broker away")
    async with client(health, CollectorRegistry()) as ops:
        assert (await ops.get("/healthz")).status_code == 200
        assert (await ops.get("/readyz")).json() == {
            "ok": True,
            "checks": {"consumer": "ok", "kafka": "ok"},
        }
        idle = 31.0
        stuck = await ops.get("/healthz")
        assert stuck.status_code == 503
        assert "no progress for 31 s" in stuck.json()["checks"]["consumer"]
        assert (await ops.get("/readyz")).json()["checks"]["kafka"] == "broker away"


async def test_metrics_come_from_the_registry_given() -> None:
    metrics = CollectorRegistry()
    Counter("ratchet_test_total", "A test.", registry=metrics).inc(3)
    async with client(Health(), metrics) as ops:
        assert "ratchet_test_total 3.0" in (await ops.get("/metrics")).text
        assert (await ops.get("/nowhere")).status_code == 404


def test_a_trace_id_survives_the_header() -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    assert parse_traceparent(traceparent(trace_id)) == trace_id


@pytest.mark.parametrize("header", ["", "00-abc-def-01", f"00-{'0' * 32}-{'1' * 16}-01", "ff-x"])
def test_a_bad_traceparent_is_none(header: str) -> None:
    assert parse_traceparent(header) is None


@pytest.mark.parametrize("version", ["00", "cc"])
def test_a_rebuilt_traceparent_has_what_parses_and_no_more(version: str) -> None:
    """Case oversized-traceparent."""
    parsed = f"{'a' * 32}-{'b' * 16}-01"
    assert rebuilt_traceparent(f"{version}-{parsed}-{'x' * 1_100_000}") == f"00-{parsed}"
    assert rebuilt_traceparent("x" * 1_100_000) == ""
    assert rebuilt_traceparent("") == ""


def test_no_line_of_a_log_has_the_credentials_of_a_url() -> None:
    script = """
import logging, structlog
from shared.observability.logging import configure_logging
configure_logging("router")
url = "https://ann:s3cret@engine:8000/v1"
structlog.get_logger().info("started", engines=(url,), at_home={"redis": "redis://:s3cret@r:6379/0"})
logging.getLogger("x").warning("no answer of %s, mail ops@example.com", url)
try:
    raise ValueError(url)
except ValueError:
    structlog.get_logger().exception("failed")
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    assert len(lines) == 3
    assert "s3cret" not in ran.stderr
    assert lines[0]["engines"] == ["https://***@engine:8000/v1"]
    assert lines[1]["event"].endswith("https://***@engine:8000/v1, mail ops@example.com")
