from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from services.training.dataset import Rules
from services.training.jobs import JobBook
from services.training.schedule import MAX_FAILURES, PAUSES, PairCounter, Situation, decide
from shared.contracts.events import RunPhase, TrainingMethod, TrainingProgress, TrainingRequested
from shared.registry.versions import Lifecycle
from tests.unit.training.making import (
    MODEL,
    NOW,
    example_event,
    pair_event,
    registry,
    request,
    retraction,
)

ENOUGH = Situation(
    model=MODEL,
    new_pairs=100,
    min_pairs=100,
    judge_pairs=30,
    min_judge_pairs=30,
    last_dataset="",
    seed=3,
)
STABLE = registry(v1_0=Lifecycle.stable)


def progress(job_id: str, phase: RunPhase, at: datetime = NOW) -> TrainingProgress:
    return TrainingProgress(
        job_id=job_id, model=MODEL, method=TrainingMethod.dpo, phase=phase, at=at
    )


def failed_schedule(count: int) -> tuple[JobBook, datetime]:
    """A book whose schedule failed so often, each time at once, and the time of the last failure."""
    book, now = JobBook(), NOW
    for number in range(count):
        now += PAUSES[number - 1] if number else timedelta(0)
        job, why = decide(ENOUGH, book, STABLE, now)
        assert job is not None, why
        book.put(job)
        book.put(progress(job.job_id, RunPhase.failed, now))
    return book, now


def test_enough_pairs_ask_for_a_job_on_the_stable_version() -> None:
    job, why = decide(ENOUGH, JobBook(), STABLE, NOW)
    assert job is not None
    assert (job.parent, job.method, job.actor, job.seed) == (
        f"{MODEL}-v1.0",
        TrainingMethod.dpo,
        "schedule",
        3,
    )
    assert why == "100 new pairs since the beginning"


def test_two_replicas_ask_for_the_same_job_and_it_is_one() -> None:
    first, _ = decide(ENOUGH, JobBook(), STABLE, NOW)
    second, _ = decide(replace(ENOUGH, new_pairs=107), JobBook(), STABLE, NOW)
    assert first is not None
    assert second is not None
    book = JobBook()
    assert book.put(first)
    assert not book.put(second)
    assert decide(ENOUGH, book, STABLE, NOW)[0] is None
    book.put(progress(first.job_id, RunPhase.succeeded))
    third, _ = decide(replace(ENOUGH, last_dataset="d"), book, STABLE, NOW)
    assert third is not None
    assert third.job_id != first.job_id


@pytest.mark.parametrize(
    ("situation", "versions", "why"),
    [
        (replace(ENOUGH, min_pairs=0), STABLE, "off"),
        (replace(ENOUGH, new_pairs=99), STABLE, "99 of 100 new pairs"),
        (replace(ENOUGH, judge_pairs=29), STABLE, "29 of 30 judge's pairs"),
        (ENOUGH, registry(v1_0=Lifecycle.retired), "no stable version"),
        (
            ENOUGH,
            registry(v1_0=Lifecycle.stable, v1_1=Lifecycle.canary),
            "assistant-v1.1 is on its way",
        ),
    ],
)
def test_it_waits_and_says_why(situation: Situation, versions: object, why: str) -> None:
    job, said = decide(situation, JobBook(), versions, NOW)  # type: ignore[arg-type]
    assert job is None
    assert said.startswith(why)


def test_it_gives_up_after_failures_in_a_row() -> None:
    book, now = failed_schedule(MAX_FAILURES)
    job, why = decide(ENOUGH, book, STABLE, now + timedelta(days=365))
    assert job is None
    assert why.startswith("3 scheduled jobs failed in a row")


@pytest.mark.parametrize("count", range(1, MAX_FAILURES))
def test_it_pauses_longer_after_each_failure(count: int) -> None:
    book, now = failed_schedule(count)
    pause = PAUSES[count - 1]
    job, why = decide(ENOUGH, book, STABLE, now + pause - timedelta(seconds=1))
    assert job is None
    assert why.startswith("the last scheduled job failed; not before 00:")
    assert decide(ENOUGH, book, STABLE, now + pause)[0] is not None
    assert decide(ENOUGH, book, STABLE, now - timedelta(days=1))[0] is not None, "a clock set back"
    assert sorted(PAUSES) == list(PAUSES)


@pytest.mark.parametrize("phase", [RunPhase.succeeded, RunPhase.rejected])
@pytest.mark.parametrize("count", [1, MAX_FAILURES])
def test_a_job_by_hand_that_does_not_fail_lets_it_go_on_at_once(
    count: int, phase: RunPhase
) -> None:
    book, now = failed_schedule(count)
    book.put(request("by-hand", actor="ana"))
    book.put(progress("by-hand", phase, now))
    assert decide(ENOUGH, book, STABLE, now)[0] is not None


@pytest.mark.parametrize(
    ("job", "phase"),
    [
        (request("other", actor="ana"), RunPhase.failed),
        (request("other", actor="ana", model="another"), RunPhase.succeeded),
    ],
)
def test_a_job_by_hand_that_failed_or_of_another_model_changes_nothing(
    job: TrainingRequested, phase: RunPhase
) -> None:
    book, now = failed_schedule(MAX_FAILURES)
    book.put(job)
    book.put(progress("other", phase, now))
    assert decide(ENOUGH, book, STABLE, now)[0] is None


def test_what_was_asked_before_the_failures_and_succeeded_after_them_counts() -> None:
    book = JobBook()
    book.put(request("by-hand", actor="ana"))
    for name in ("a", "b", "c"):
        book.put(request(name, actor="schedule"))
        book.put(progress(name, RunPhase.failed))
    book.put(progress("by-hand", RunPhase.succeeded))
    assert decide(ENOUGH, book, STABLE, NOW)[0] is not None


def test_an_end_that_was_only_noted_is_not_done_again_and_not_decided_on() -> None:
    book = JobBook()
    book.put(request("a"))
    book.note("a")
    assert not list(book.waiting())
    assert decide(ENOUGH, book, STABLE, NOW) == (None, "a job of this model is not finished")


def test_pairs_are_counted_until_a_snapshot_has_them() -> None:
    counter = PairCounter(MODEL, Rules())
    for offset, event in enumerate(
        [
            pair_event(1),
            pair_event(2),
            pair_event(3, panel="judge"),
            pair_event(4, chosen="short"),
            pair_event(5, model="other"),
            example_event(1),
            pair_event(6),
            retraction("pair-0002"),
        ]
    ):
        counter.apply(event, "preferences/0", offset)
    assert (len(counter), counter.judged) == (2, 1)
    counter.forget({"preferences/0": 1})
    assert (len(counter), counter.judged) == (1, 1)
    counter.forget({"preferences/0": 8, "preferences/1": 5})
    assert len(counter) == 0


def test_a_job_waits_until_its_end_in_whatever_order_the_topics_are_read() -> None:
    book = JobBook()
    book.put(progress("b", RunPhase.succeeded))
    for name in ("a", "b", "c"):
        book.put(request(name))
    book.put(progress("a", RunPhase.training))
    assert [job.job_id for job in book.waiting()] == ["a", "c"]
    book.put(progress("a", RunPhase.rejected))
    assert [job.job_id for job in book.waiting()] == ["c"]
    assert (book.ended("a"), book.ended("c")) == (RunPhase.rejected, None)
