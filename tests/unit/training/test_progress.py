from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from services.training.metrics import TrainingMetrics
from services.training.outcome import JobOutcome
from services.training.progress import ProgressReporter
from services.training.trainers.job import StageProgress
from shared.contracts.events.training import RunPhase, TrainingProgress
from shared.contracts.events.versions import GateCheck
from shared.contracts.topics import TRAINING_RUNS
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.unit.training.builders import request


def said(log: MemoryLog) -> list[TrainingProgress]:
    return [
        TrainingProgress.model_validate_json(one.value or b"") for one in log.all(TRAINING_RUNS)
    ]


async def test_steps_are_told_at_a_bounded_rate_and_phases_at_once() -> None:
    clock, registry = ManualClock(), CollectorRegistry()
    log = MemoryLog(clock=clock)
    reporter = ProgressReporter(log, clock, TrainingMetrics(registry), request())
    await reporter.enter(RunPhase.accepted, 0.0)
    for step in range(1, 101):
        await reporter.step(StageProgress(stage="dpo", done=step, total=100, loss=0.5))
        clock.advance(0.1)
    await reporter.step(StageProgress(stage="evaluate", done=1, total=10))
    await reporter.finish(JobOutcome(RunPhase.succeeded, "done", "v", {"win_rate": 0.6}))
    events = said(log)
    assert len(events) <= 9
    assert [event.phase for event in events[-2:]] == [RunPhase.judging, RunPhase.succeeded]
    assert [event.progress for event in events] == sorted(event.progress for event in events)
    name = "ratchet_training_run_progress_ratio"
    assert registry.get_sample_value(name, {"method": "dpo"}) == 0


async def test_a_second_attempt_goes_on_from_the_first_ones_end_and_is_named() -> None:
    clock = ManualClock()
    log = MemoryLog(clock=clock)
    metrics = TrainingMetrics(CollectorRegistry())
    reporter = ProgressReporter(log, clock, metrics, request(), attempts=2)
    for number in (1, 2):
        reporter.attempt = number
        for stage in ("reward", "dpo", "evaluate"):
            for step in range(1, 11):
                clock.advance(3)
                await reporter.step(StageProgress(stage=stage, done=step, total=10))
        await reporter.enter(RunPhase.gating, 1.0)
    shares = [event.progress for event in said(log)]
    assert shares == sorted(shares)
    assert shares[len(shares) // 2 - 1] == pytest.approx(0.5)
    assert shares[-1] == pytest.approx(0.95)
    assert said(log)[0].message.startswith("attempt 1 of at most 2: reward: step ")
    assert said(log)[-2].message.startswith("attempt 2 of at most 2: evaluate: step ")


async def test_a_step_says_how_long_its_stage_still_takes() -> None:
    clock = ManualClock()
    log = MemoryLog(clock=clock)
    reporter = ProgressReporter(log, clock, TrainingMetrics(CollectorRegistry()), request())
    steps = (("reward", 5), ("reward", 15), ("dpo", 40), ("dpo", 60), ("dpo", 10), ("dpo", 80))
    for stage, done in steps:
        clock.advance(30)
        await reporter.step(StageProgress(stage=stage, done=done, total=100))
    assert [event.message.partition("of 100")[2] for event in said(log)] == [
        "",
        ", about 4 min left",
        "",
        ", about 60 s left",
        "",
        ", about 9 s left",
    ], "a stage that was killed goes on from its checkpoint, and its pace is measured anew"


async def test_rows_that_are_prepared_are_told_of_with_the_time_left_and_are_no_step() -> None:
    clock, registry = ManualClock(), CollectorRegistry()
    log = MemoryLog(clock=clock)
    reporter = ProgressReporter(log, clock, TrainingMetrics(registry), request())
    await reporter.enter(RunPhase.training, 0.15)
    for done in range(0, 4000, 100):
        clock.advance(3)
        rows = StageProgress(
            stage="dpo", done=done, total=4000, preparing="Tokenizing train dataset"
        )
        await reporter.step(rows)
    clock.advance(30)
    await reporter.step(StageProgress(stage="dpo", done=70, total=0, preparing="Generating"))
    clock.advance(3)
    await reporter.step(StageProgress(stage="dpo", done=1, total=10))
    first, *told, generating, step = said(log)
    assert len(told) == 8, "every 15 s of two minutes"
    assert told[0].message == "dpo: Tokenizing train dataset: row 400 of 4000, about 108 s left"
    assert generating.message == "dpo: Generating: row 70"
    assert {one.progress for one in (*told, generating)} == {first.progress}
    assert step.progress > first.progress
    assert step.message == "dpo: step 1 of 10"


async def test_a_model_that_is_loaded_is_told_of_with_its_age_and_is_no_step() -> None:
    clock = ManualClock()
    log = MemoryLog(clock=clock)
    reporter = ProgressReporter(log, clock, TrainingMetrics(CollectorRegistry()), request())
    await reporter.enter(RunPhase.training, 0.15)
    for second, done, total in ((20, 0, 0), (22, 1, 300), (40, 100, 300), (60, 200, 300)):
        clock.advance(20)
        load = StageProgress(
            stage="dpo", done=done, total=total, preparing="loading base", loading_s=second
        )
        await reporter.step(load)
    first, *told = said(log)
    assert [one.message for one in told] == [
        "dpo: loading base: 20 s so far",
        "dpo: loading base: tensor 1 of 300, 22 s so far",
        "dpo: loading base: tensor 100 of 300, 40 s so far, about 40 s left",
        "dpo: loading base: tensor 200 of 300, 60 s so far, about 20 s left",
    ]
    assert {one.progress for one in told} == {first.progress}


async def test_a_lost_step_does_not_stop_the_job() -> None:
    clock = ManualClock()
    log = MemoryLog(clock=clock)
    reporter = ProgressReporter(log, clock, TrainingMetrics(CollectorRegistry()), request())
    log.available = False
    await reporter.enter(RunPhase.snapshot, 0.1)
    log.available = True
    await reporter.enter(RunPhase.gating, 0.9, "x" * 9000)
    assert [event.phase for event in said(log)] == [RunPhase.gating]
    assert len(said(log)[0].message) == 2000


async def test_time_by_stage_time_left_and_the_attempt_are_told() -> None:
    clock, registry = ManualClock(), CollectorRegistry()
    log = MemoryLog(clock=clock)
    reporter = ProgressReporter(log, clock, TrainingMetrics(registry), request(), attempts=2)
    reporter.attempt = 2
    for stage in ("dpo", "evaluate"):
        for step in range(3):
            clock.advance(4)
            await reporter.step(StageProgress(stage=stage, done=step, total=10))

    def told(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"ratchet_training_{name}", labels)

    assert told("stage_seconds_total", stage="dpo") == 8
    assert told("stage_seconds_total", stage="evaluate") == 8
    assert told("stage_seconds_total", stage="reward") == 0
    assert (told("stage_left_seconds"), told("attempt")) == (32, 2)
    await reporter.finish(JobOutcome(RunPhase.failed, "away"))
    assert (told("stage_left_seconds"), told("attempt")) == (0, 0)


def test_a_refused_candidate_tells_its_figures_and_the_checks_that_failed() -> None:
    registry = CollectorRegistry()
    metrics = TrainingMetrics(registry)

    def told(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"ratchet_training_{name}", labels)

    failed = GateCheck(name="kl", passed=False, value=0.3, limit=0.1, detail="")
    passed = GateCheck(name="stop", passed=True, value=0.9, limit=0.8, detail="")
    figures = {"kl": 0.3, "length_ratio": 1.2, "candidate_stop": 0.9}
    outcome = JobOutcome(RunPhase.rejected, "", metrics=figures, checks=(failed, passed))
    metrics.note_outcome("m", outcome)
    assert told("checks_failed_total", check="kl") == 1
    assert told("checks_failed_total", check="stop") is None
    assert told("candidate_figure", model="m", figure="kl") == 0.3
    assert told("candidate_figure", model="m", figure="candidate_stop") is None

    metrics.note_outcome("m", JobOutcome(RunPhase.failed, "away"))
    assert told("candidate_figure", model="m", figure="length_ratio") == 1.2
    metrics.note_outcome("m", JobOutcome(RunPhase.succeeded, "", metrics={"kl": 0.0}))
    assert told("candidate_figure", model="m", figure="kl") == 0
    assert told("candidate_figure", model="m", figure="length_ratio") is None
