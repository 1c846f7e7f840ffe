from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from services.training import spill
from services.training.jobs import JobQueue
from services.training.sides import DatasetRules
from services.training.trigger import MAX_FAILURES, PAUSES, PairCounter, TriggerInputs, decide
from shared.contracts.events.base import Context, Event
from shared.contracts.events.preferences import PairSource
from shared.contracts.events.training import (
    RunPhase,
    TrainingCancelled,
    TrainingMethod,
    TrainingProgress,
    TrainingRequested,
)
from shared.contracts.events.versions import Lifecycle, record_key, settings_key, state_key
from shared.registry.job_origin import origin_of
from shared.registry.versions import Registry
from tests.support.rollouts import settings_record
from tests.unit.training.builders import (
    MODEL,
    NOW,
    example_event,
    pair_event,
    record,
    registry,
    request,
    retraction,
    state,
)

ENOUGH = TriggerInputs(
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


def failed_schedule(count: int) -> tuple[JobQueue, datetime]:
    """A queue whose schedule failed so often, each time at once, and the time of the last failure."""
    queue, now = JobQueue(), NOW
    for number in range(count):
        now += PAUSES[number - 1] if number else timedelta(0)
        job, why = decide(ENOUGH, queue, STABLE, now)
        assert job is not None, why
        queue.put(job)
        queue.put(progress(job.job_id, RunPhase.failed, now))
    return queue, now


def test_enough_pairs_ask_for_a_job_on_the_stable_version() -> None:
    job, why = decide(ENOUGH, JobQueue(), STABLE, NOW)
    assert job is not None
    assert (job.parent, job.method, job.actor, job.seed) == (
        f"{MODEL}-v1.0",
        TrainingMethod.dpo,
        "schedule",
        3,
    )
    assert why == "100 new pairs since the beginning"


def test_votes_on_the_model_as_it_is_ask_for_a_job_too() -> None:
    versions, version = Registry(), f"{MODEL}-v1.0"
    versions.apply(settings_key(version), settings_record(version).to_json())
    versions.apply(state_key(version), state(version, Lifecycle.stable).to_json())
    job, _ = decide(ENOUGH, JobQueue(), versions, NOW)
    assert job is not None
    assert job.parent == version
    assert origin_of(job, versions).parent is None


def test_two_replicas_ask_for_the_same_job_and_it_is_one() -> None:
    first, _ = decide(ENOUGH, JobQueue(), STABLE, NOW)
    second, _ = decide(replace(ENOUGH, new_pairs=107), JobQueue(), STABLE, NOW)
    assert first is not None
    assert second is not None
    queue = JobQueue()
    assert queue.put(first)
    assert not queue.put(second)
    assert decide(ENOUGH, queue, STABLE, NOW)[0] is None
    queue.put(progress(first.job_id, RunPhase.succeeded))
    third, _ = decide(replace(ENOUGH, last_dataset="d"), queue, STABLE, NOW)
    assert third is not None
    assert third.job_id != first.job_id


@pytest.mark.parametrize(
    ("inputs", "versions", "why"),
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
def test_it_waits_and_says_why(inputs: TriggerInputs, versions: object, why: str) -> None:
    job, said = decide(inputs, JobQueue(), versions, NOW)  # type: ignore[arg-type]
    assert job is None
    assert said.startswith(why)


def test_a_version_on_another_base_does_not_hold_the_next_training_up() -> None:
    versions = registry(v1_0=Lifecycle.stable)
    moved = record(f"{MODEL}-v2.0", base="new", rebases=f"{MODEL}-v1.0")
    versions.apply(record_key(moved.version), moved.to_json())
    job, _ = decide(ENOUGH, JobQueue(), versions, NOW)
    assert job is not None
    assert job.parent == f"{MODEL}-v1.0"


def test_it_gives_up_after_failures_in_a_row() -> None:
    queue, now = failed_schedule(MAX_FAILURES)
    job, why = decide(ENOUGH, queue, STABLE, now + timedelta(days=365))
    assert job is None
    assert why.startswith("3 scheduled jobs failed in a row")


@pytest.mark.parametrize("count", range(1, MAX_FAILURES))
def test_it_pauses_longer_after_each_failure(count: int) -> None:
    queue, now = failed_schedule(count)
    pause = PAUSES[count - 1]
    job, why = decide(ENOUGH, queue, STABLE, now + pause - timedelta(seconds=1))
    assert job is None
    assert why.startswith("the last scheduled job failed; not before 00:")
    assert decide(ENOUGH, queue, STABLE, now + pause)[0] is not None
    assert decide(ENOUGH, queue, STABLE, now - timedelta(days=1))[0] is not None, "a clock set back"
    assert sorted(PAUSES) == list(PAUSES)


@pytest.mark.parametrize("phase", [RunPhase.succeeded, RunPhase.rejected])
@pytest.mark.parametrize("count", [1, MAX_FAILURES])
def test_a_job_by_hand_that_does_not_fail_lets_it_go_on_at_once(
    count: int, phase: RunPhase
) -> None:
    queue, now = failed_schedule(count)
    queue.put(request("by-hand", actor="ana"))
    queue.put(progress("by-hand", phase, now))
    assert decide(ENOUGH, queue, STABLE, now)[0] is not None


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
    queue, now = failed_schedule(MAX_FAILURES)
    queue.put(job)
    queue.put(progress("other", phase, now))
    assert decide(ENOUGH, queue, STABLE, now)[0] is None


def test_what_was_asked_before_the_failures_and_succeeded_after_them_counts() -> None:
    queue = JobQueue()
    queue.put(request("by-hand", actor="ana"))
    for name in ("a", "b", "c"):
        queue.put(request(name, actor="schedule"))
        queue.put(progress(name, RunPhase.failed))
    queue.put(progress("by-hand", RunPhase.succeeded))
    assert decide(ENOUGH, queue, STABLE, NOW)[0] is not None


def test_an_end_that_was_only_noted_is_not_done_again_and_not_decided_on() -> None:
    queue = JobQueue()
    queue.put(request("a"))
    queue.note("a")
    assert not list(queue.waiting())
    assert decide(ENOUGH, queue, STABLE, NOW) == (None, "a job of this model is not finished")


def test_pairs_are_counted_until_a_snapshot_has_them() -> None:
    counter = PairCounter(MODEL, DatasetRules(judge_share=0))
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


def test_synthetic_pairs_are_none_of_the_judge_s() -> None:
    counter = PairCounter(MODEL, DatasetRules(judge_share=0.5, synthetic=True))
    for number in range(20):
        synthetic = {"source": PairSource.synthetic, "raters": ()}
        counter.apply(pair_event(number, **synthetic), "preferences/0", number)
    assert counter.judged == 0
    counter.apply(pair_event(99, panel="judge"), "preferences/0", 99)
    assert counter.judged == 1


def test_a_job_waits_until_its_end_in_whatever_order_the_topics_are_read() -> None:
    queue = JobQueue()
    queue.put(progress("b", RunPhase.succeeded))
    for name in ("a", "b", "c"):
        queue.put(request(name))
    queue.put(progress("a", RunPhase.training))
    assert [job.job_id for job in queue.waiting()] == ["a", "c"]
    queue.put(progress("a", RunPhase.rejected))
    assert [job.job_id for job in queue.waiting()] == ["c"]
    assert (queue.ended("a"), queue.ended("c")) == (RunPhase.rejected, None)


def test_thumbs_count_where_kto_trains_by_itself() -> None:
    rules = DatasetRules(judge_share=0)
    pairs, thumbs = PairCounter(MODEL, rules), PairCounter(MODEL, rules, labelled=True)
    for number in range(6):
        event = example_event(number).model_copy(update={"completion": "a long enough answer"})
        for counter in (pairs, thumbs):
            counter.apply(event, "p/0", number)
    assert (len(pairs), len(thumbs), thumbs.judged) == (0, 6, 0)
    job, _ = decide(replace(ENOUGH, algorithm="kto"), JobQueue(), STABLE, NOW)
    assert job is not None
    assert job.recipe_method == "kto"


def test_what_is_missing_for_the_next_training_is_counted_by_kind() -> None:
    few = replace(ENOUGH, new_pairs=179, judge_pairs=4, heldout_pairs=0)
    assert few.missing == {
        "pairs": 0,
        "judge_pairs": 26,
        "heldout_pairs": 1,
        "category_pairs": 0,
        "days": 0.0,
    }
    assert replace(few, min_pairs=0).missing == {}
    assert decide(replace(ENOUGH, heldout_pairs=0), JobQueue(), STABLE, NOW)[0] is None


def test_after_a_rejected_job_the_same_pairs_wait_for_a_quarter_more() -> None:
    queue = JobQueue()
    job, _ = decide(ENOUGH, queue, STABLE, NOW)
    assert job is not None
    queue.put(job)
    queue.put(progress(job.job_id, RunPhase.rejected))
    again, why = decide(replace(ENOUGH, fresh_pairs=24), queue, STABLE, NOW)
    assert again is None
    assert why == "24 of 25 pairs since the last job, which was rejected"
    again, _ = decide(replace(ENOUGH, fresh_pairs=25), queue, STABLE, NOW)
    assert again is not None
    assert again.job_id != job.job_id


def test_a_dataset_that_a_person_built_ends_no_pause() -> None:
    built = request("built", builds_dataset=True)
    for end, why in ((RunPhase.rejected, "which was rejected"), (RunPhase.failed, "failed")):
        queue = JobQueue()
        job, _ = decide(ENOUGH, queue, STABLE, NOW)
        assert job is not None
        for event in (job, progress(job.job_id, end), built, progress("built", RunPhase.succeeded)):
            queue.put(event)
        again, told = decide(ENOUGH, queue, STABLE, NOW)
        assert again is None
        assert why in told


def test_a_scheduled_job_that_a_person_cancelled_is_not_asked_for_again_at_once() -> None:
    queue = JobQueue()
    job, _ = decide(ENOUGH, queue, STABLE, NOW)
    assert job is not None
    queue.put(job)
    queue.put(TrainingCancelled(job_id=job.job_id, actor="ann", requested_at=NOW))
    queue.put(progress(job.job_id, RunPhase.failed))
    assert queue.trailing_failures(MODEL, "schedule") == []
    again, why = decide(replace(ENOUGH, fresh_pairs=24), queue, STABLE, NOW)
    assert again is None
    assert "24 of 25 pairs" in why
    assert decide(replace(ENOUGH, fresh_pairs=25), queue, STABLE, NOW)[0] is not None


def test_pairs_since_a_snapshot_are_counted_without_using_the_others_up() -> None:
    counter = PairCounter(MODEL, DatasetRules(heldout_share=0.5, judge_share=0))
    for number in range(10):
        counter.apply(pair_event(number), "p/0", number)
    assert counter.since({"p/0": 7}) == 3
    assert len(counter) == 10
    assert 0 < counter.heldout < 10
    for number in range(10):
        counter.apply(retraction(f"pair-{number:04}"), "p/0", 10 + number)
    assert counter.heldout == 0


def history(pairs: int) -> Iterator[Event]:
    """Pairs of a few categories, thumbs among them, some taken back and some made again."""
    for number in range(pairs):
        panel = "judge" if number % 13 == 0 else ""
        context = Context(category=f"category-{number % 5}")
        raters = (f"rater-{number % 11}",)
        yield pair_event(number, panel=panel, context=context, raters=raters)
        if number % 6 == 0:
            yield example_event(number).model_copy(update={"completion": "a long enough answer"})
        if number % 10 == 7:
            yield retraction(f"pair-{number - 3:04}")
        if number % 20 == 7:
            yield pair_event(number - 3, raters=raters)


def counter_of(events: Iterator[Event]) -> PairCounter:
    counter = PairCounter(MODEL, DatasetRules(), labelled=True)
    for offset, event in enumerate(events):
        counter.apply(event, f"p/{offset % 2}", offset)
    return counter


def test_memory_does_not_grow_with_the_pairs_that_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SQLite's own memory, which is not traced, is bounded by its cache."""
    monkeypatch.setattr(spill, "SPILL_ROWS", 50)
    held: list[int] = []
    for pairs in (100, 1_000, 4_000):  # the first one loads what is loaded once
        tracemalloc.start()
        try:
            counter = counter_of(history(pairs))
            assert len(counter) > 0
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    assert (held[2] - held[1]) / 3_000 < 60, (
        held
    )  # bytes a pair; held whole, it takes ten times that
