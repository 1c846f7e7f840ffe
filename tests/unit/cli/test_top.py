"""The live view: what one look shows, and what it says where something does not answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.cli import top
from services.cli.errors import CliError, Exit
from services.cli.prometheus import PrometheusClient, Sample
from tests.support.command import ratchet_here

STABLE = {"model": "assistant", "version": "v1", "arm": "stable"}
CANDIDATE = {"model": "assistant", "version": "v2", "arm": "candidate"}
ROLLOUT = {
    "model": "assistant",
    "candidate": "v2",
    "weight": 500,
    "phase": "Progressing",
    "outcome": "Successful",
    "result": "",
    "reason": "waits for 200 answers",
}


def answers(query: str) -> list[Sample]:
    rates, failed, scores = top.TRAFFIC.values()
    found = {
        rates: [Sample(STABLE, 9.5), Sample(CANDIDATE, 0.5)],
        failed: [Sample(CANDIDATE, 0.25)],
        scores: [Sample({"version": "v1"}, 0.8)],
        top.PENDING["training jobs waiting"]: [Sample({}, 2.0)],
    }
    return found.get(query, [])


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setattr(PrometheusClient, "query", lambda _, query: answers(query))
    monkeypatch.setattr(top, "ask", lambda *_, **__: {"rollouts": [ROLLOUT]})
    return lambda *options: ratchet_here("top", *options, monkeypatch=monkeypatch, capsys=capsys)


def test_one_look_has_each_version_rollouts_and_what_waits(run: Any) -> None:
    seen = json.loads(run("--json").out)
    stable, candidate = seen["traffic"]
    assert (stable["version"], stable["requests a second"], stable["failed"]) == ("v1", 9.5, 0.0)
    assert (candidate["failed"], candidate["satisfaction (5 min)"]) == (0.25, None)
    assert seen["pending"] == {"training jobs waiting": 2.0}
    assert seen["missing"] == []


def test_into_a_pipe_it_is_drawn_once(run: Any) -> None:
    shown = run().out
    for text in ("v1", "9.5", "5 %", "waits for 200 answers", "training jobs waiting"):
        assert text in shown


def test_it_goes_on_and_says_what_does_not_answer(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise CliError("Prometheus gave no answer", Exit.unreachable)

    monkeypatch.setattr(PrometheusClient, "query", away)
    ran = run()
    assert ran.status == 0
    assert "Prometheus gave no answer" in ran.out
    assert "waits for 200 answers" in ran.out
