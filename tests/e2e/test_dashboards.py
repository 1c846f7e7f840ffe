"""What operators look at shows something on a running stack: panels, the doctor, the report."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, start_http_server

from deploy.k8s.monitoring.boards import BOARDS
from deploy.k8s.monitoring.generate import dashboard
from deploy.local.stack import Stack
from services.training.metrics import CANDIDATE_FIGURES, TrainingMetrics
from services.training.outcome import JobOutcome
from services.training.plans import WeekProgress
from shared.contracts.events.training import RunPhase
from shared.contracts.events.versions import GateCheck
from tests.e2e.traffic import send_traffic
from tests.e2e.versions import register_version
from tests.support.command import ratchet
from tests.support.dashboards import asked, draw, drawing_page, faults
from tests.support.waiting import wait_until

VERSION = "assistant-v2.0"
DEMO_STRATEGY = Path(__file__).parents[2] / "demo" / "strategies" / "demo.yaml"
RATE_INTERVAL = "30s"
QUERIES = [
    pytest.param(query, id=f"{name}: {panel.title}")
    for name, (_, panels) in BOARDS.items()
    for panel in panels
    for query, _ in panel.queries
]


def result(prometheus: str, query: str) -> list[dict[str, Any]]:
    query = query.replace("$__rate_interval", RATE_INTERVAL)
    address = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(address, timeout=10) as answer:
        return json.load(answer)["data"]["result"]


@contextmanager
def trained(stack: Stack) -> Iterator[None]:
    """What training tells of once it has trained, which this stack does not do, in its metrics."""
    registry = CollectorRegistry()
    metrics = TrainingMetrics(registry)
    check = GateCheck(name="kl", passed=False, value=0.3, limit=0.1, detail="")
    figures = dict.fromkeys(CANDIDATE_FIGURES, 0.5)
    outcome = JobOutcome(RunPhase.rejected, "kl", metrics=figures, checks=(check,))
    metrics.note_outcome("assistant", outcome)
    measures = ("accuracy", "predecessor_accuracy", "fresh_accuracy", "calibration_error")
    metrics.show_reward_figures("assistant", dict.fromkeys(measures, 0.5))
    metrics.reward_drift.labels("assistant", "length").set(0.1)
    metrics.show_week("assistant", WeekProgress(date(2026, 11, 23), 1, 2, timedelta(hours=1)))
    server, thread = start_http_server(0, "127.0.0.1", registry)
    stack.scrape("trained", [f"127.0.0.1:{server.server_port}"])
    try:
        yield
    finally:
        stack.scrape("trained", [])
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.fixture(scope="module")
def busy(serving: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with traffic, feedback and a rollout under way, which is over afterwards."""
    env = serving.environment()
    folder = tmp_path_factory.mktemp("dashboards")
    register_version(serving, VERSION, folder)
    strategy = folder / "demo.json"
    strategy.write_text(json.dumps(yaml.safe_load(DEMO_STRATEGY.read_text())))
    started = ratchet(
        *("rollout", "start", VERSION, "--strategy", f"@{strategy}"),
        *("--reason", "dashboards need something to show"),
        env=env,
    )
    assert started.status == 0, started.out + started.err
    send_traffic(serving, seconds=45)
    with trained(serving):
        yield serving
    ratchet("rollout", "abort", "--reason", "the dashboards were looked at", env=env)

    def over() -> bool:
        seen = ratchet("versions", "list", "--json", env=env)
        return {row["version"]: row["state"] for row in seen.json["versions"]}[
            VERSION
        ] == "rejected"

    wait_until(over, f"{VERSION} is out of the way")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("query", QUERIES)
def test_no_panel_is_empty(busy: Stack, query: str) -> None:
    prometheus = busy.url("prometheus")
    wait_until(lambda: result(prometheus, query), f"a sample of {query}")


@pytest.mark.verify
@pytest.mark.timeout(900)
def test_grafanas_components_draw_every_panel_that_has_data(busy: Stack, tmp_path: Path) -> None:
    end = datetime.now(UTC)
    start = end - timedelta(minutes=3)
    wrong = {}
    with drawing_page(tmp_path) as page:
        for name in BOARDS:
            panels = dashboard(name)["panels"]
            series = [asked(panel, busy.url("prometheus"), start, end) for panel in panels]
            assert any(line.shows for lines in series for line in lines), name
            wrong[name] = faults(draw(page, panels, series, start, end), series)
    assert {name: found for name, found in wrong.items() if found} == {}


@pytest.mark.timeout(900)
def test_the_doctor_finds_nothing_wrong_or_missing(busy: Stack) -> None:
    ran = ratchet("doctor", "--json", env=busy.environment())
    findings = ran.json["findings"]
    assert [one for one in findings if one["state"] == "wrong"] == []
    assert ran.status == 0
    looked_at = {one["what"] for one in findings}
    assert {"kafka", "topics", "redis", "prometheus", "scrapes", "alerts", "inference"} <= looked_at
    assert "lag of ratchet.aggregator" in looked_at
    (disks,) = (one["detail"] for one in findings if one["what"] == "disk")
    assert disks.startswith("aggregator, feedback, inference, intake, rollout, router, training: ")


@pytest.mark.timeout(900)
def test_the_weekly_report_has_live_figures_and_misses_nothing(busy: Stack) -> None:
    def reported() -> bool:
        ran = ratchet("report", "weekly", "--json", env=busy.environment())
        assert ran.status == 0, ran.err
        assert ran.json["missing"] == ""
        return bool(ran.json["figures"] and ran.json["errors"] and ran.json["versions"])

    wait_until(reported, "figures, errors and versions in the report")
