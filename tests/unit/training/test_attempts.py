"""Attempts of a job beyond the rule's: searched, the same after a kill, and the nearest one told of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.training.outcome import JobOutcome
from services.training.trainers.job import GIVEN_UP
from services.training.workspace import Workspace
from shared.contracts.events.training import RunPhase
from tests.unit.training.builders import request
from tests.unit.training.harness import TrainingHarness

WEAK = {"figures": {"wins": 105.0, "ties": 0.0, "losses": 95.0}}
FAR = {"figures": {"candidate_stop_share": 0.2}}
FURTHER = {"figures": {"candidate_stop_share": 0.1}, "drift": {"kl": 3.0}}


def hyperparameters(harness: TrainingHarness) -> list[dict[str, Any]]:
    """Of each attempt, what its trainer was told."""
    folders = Workspace(harness.folder / "state/training/jobs", "job").attempts()
    return [json.loads((one / "job.json").read_bytes())["hyperparameters"] for one in folders]


def report(outcome: JobOutcome) -> dict[str, Any]:
    folder = Path(outcome.report_uri.removeprefix("file://"))
    assert "<h2>Attempts</h2>" in (folder / "report.html").read_text()
    return json.loads((folder / "evaluation.json").read_bytes())


async def test_the_rule_comes_first_and_the_search_is_told_of_all_before_it(
    harness: TrainingHarness,
) -> None:
    harness.plan(WEAK, FAR, FAR, {})
    outcome = await harness.run(request(seed=5), attempts=4)
    assert outcome.phase is RunPhase.succeeded
    first, second, third, fourth = hyperparameters(harness)
    assert second["learning_rate"] == pytest.approx(first["learning_rate"] * 1.5)
    asked = harness.searches
    assert [len(one["trials"]) for one in asked] == [2, 3]
    assert [one["seed"] for one in asked] == [7, 8]
    told = asked[1]["trials"]
    for trial, trained in zip(told, (first, second, third), strict=True):
        assert trial["parameters"] == {name: trained[name] for name in trial["parameters"]}
    assert 0 < told[0]["shortfall"] < told[1]["shortfall"]
    for attempt, trained in zip(asked, (third, fourth), strict=True):
        for name, (low, high) in attempt["space"].items():
            assert trained[name] == pytest.approx((low * high) ** 0.5)
    tried = report(outcome)["attempts"]
    assert [one["chosen_by"] for one in tried] == ["recipe", "rule", "search", "search"]
    assert (tried[-1]["failed"], tried[-1]["shortfall"]) == ([], 0)
    made = harness.records()[-1].hyperparameters
    assert (
        made["learning_rate"] == fourth["learning_rate"] == tried[-1]["parameters"]["learning_rate"]
    )


async def test_a_job_that_is_killed_searches_the_same_again(harness: TrainingHarness) -> None:
    harness.plan(WEAK, FAR, {"exit": 9})
    assert (await harness.run(request(), attempts=3)).phase is RunPhase.failed
    before, asked = hyperparameters(harness)[2], harness.searches
    harness.plan(WEAK, FAR, {})
    assert (await harness.run(request(), attempts=3)).phase is RunPhase.succeeded
    assert hyperparameters(harness)[2] == before
    assert harness.searches == [*asked, *asked]


async def test_a_refusal_is_about_the_attempt_nearest_to_passing(harness: TrainingHarness) -> None:
    harness.plan(WEAK, FAR, FURTHER)
    outcome = await harness.run(request(), attempts=3)
    assert outcome.phase is RunPhase.rejected
    assert outcome.message.startswith("not improved after 3 attempts; win_rate 0.525")
    assert "the checks above are of attempt 1, the nearest to passing" in outcome.message
    assert outcome.metrics is not None
    assert outcome.metrics["win_rate"] == pytest.approx(0.525)
    assert {check.name for check in outcome.checks if not check.passed} == {
        "win_rate",
        "win_rate_low",
    }
    said = report(outcome)
    assert said["parameters"]["learning_rate"] == hyperparameters(harness)[0]["learning_rate"]
    shortfalls = [one["shortfall"] for one in said["attempts"]]
    assert shortfalls[0] == min(shortfalls)
    assert [one["failed"] for one in said["attempts"]][1:] == [["stop"], ["stop", "kl"]]


async def test_a_further_attempt_that_diverges_ends_the_job_with_the_diagnosis_of_those_before_it(
    harness: TrainingHarness,
) -> None:
    diverged = "dpo: the loss is nan at step 3: training diverged; lower learning_rate"
    harness.plan(WEAK, {"exit": GIVEN_UP, "failure": diverged})
    outcome = await harness.run(request(), attempts=3)
    assert outcome.phase is RunPhase.rejected
    assert outcome.message.startswith("not improved after 1 attempt; win_rate 0.525")
    assert f"attempt 2 had no result: {diverged}" in outcome.message
    assert outcome.report_uri
    harness.plan(WEAK, {"exit": 9})
    crashed = await harness.run(request("crashed"), attempts=3)
    assert crashed.phase is RunPhase.failed, "what is no matter of hyperparameters"


async def test_a_search_that_fails_fails_the_job_with_its_words(harness: TrainingHarness) -> None:
    fake = Path(harness.settings.python)
    fake.write_text(
        fake.read_text().replace("exec ", 'case "$*" in */search*) exit 9;; esac\nexec ')
    )
    harness.plan(WEAK, FAR)
    outcome = await harness.run(request(), attempts=3)
    assert outcome.phase is RunPhase.failed
    assert "ended 2 times without a result" in outcome.message
