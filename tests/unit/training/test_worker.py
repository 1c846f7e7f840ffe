"""Jobs from the log, the schedule's own, and what cannot be read."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable

import pytest
from prometheus_client import CollectorRegistry

from services.training.dataset_store import DatasetStore
from services.training.erasure import DatasetEraser
from services.training.jobs import JobQueue
from services.training.metrics import TrainingMetrics
from services.training.reminders import CollectionStatus
from services.training.runner import Runner
from services.training.scheduler import Scheduler
from services.training.worker import TrainingWorker
from shared.clock import SystemClock
from shared.contracts.events.training import RunPhase, TrainingCancelled, TrainingRequested
from shared.contracts.topics import DEAD_LETTERS, PREFERENCES, TRAINING_JOBS
from shared.kafka.deadletters import DeadLetters
from shared.kafka.lease import Lease
from shared.redaction import Redaction
from shared.registry.follow import RegistryFollower
from shared.testing.lease import MemoryLease
from tests.support.waiting import eventually
from tests.unit.training.builders import MODEL, NOW, pair_event, request
from tests.unit.training.harness import V10, TrainingHarness


@contextlib.asynccontextmanager
async def at_work(
    harness: TrainingHarness,
    *,
    min_pairs: int = 0,
    remind: Callable[[CollectionStatus], None] | None = None,
    lease: Lease | None = None,
) -> AsyncIterator[CollectorRegistry]:
    """All of the service but its ops routes."""
    settings = harness.settings.model_copy(
        update={"min_pairs": min_pairs, "schedule_interval_s": 0.05}
    )
    registry, clock, queue = CollectorRegistry(), SystemClock(), JobQueue()
    metrics, versions = TrainingMetrics(registry), RegistryFollower(harness.log)
    store = DatasetStore(settings.datasets_uri)
    runner = Runner(
        event_log=harness.log,
        registry=versions,
        store=store,
        settings=settings,
        metrics=metrics,
        clock=clock,
        redact=Redaction(),
    )
    scheduler = Scheduler(
        event_log=harness.log,
        queue=queue,
        registry=versions,
        store=store,
        settings=settings,
        metrics=metrics,
        clock=clock,
        remind=remind,
    )
    eraser = DatasetEraser(harness.log, versions, store, runner.jobs, clock)
    worker = TrainingWorker(
        event_log=harness.log,
        queue=queue,
        registry=versions,
        runner=runner,
        scheduler=scheduler,
        eraser=eraser,
        dead_letters=DeadLetters(
            harness.log, service="training", redact=lambda text: text, metrics=registry
        ),
        lease=lease or MemoryLease(),
        metrics=metrics,
        settings=settings,
    )
    work = (
        versions.run(), worker.follow(), scheduler.count(), eraser.follow(), worker.work()
    )  # fmt: skip
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield registry
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def ask(harness: TrainingHarness, job: TrainingRequested) -> None:
    await harness.log.publish(TRAINING_JOBS, key=job.job_id, event=job, event_id=job.job_id)


def ends(harness: TrainingHarness) -> list[tuple[str, RunPhase]]:
    final = {RunPhase.succeeded, RunPhase.rejected, RunPhase.failed}
    return [(event.job_id, event.phase) for event in harness.progress("") if event.phase in final]


async def test_jobs_are_done_one_by_one_in_the_order_of_the_log(harness: TrainingHarness) -> None:
    await ask(harness, request("first", parent="nobody"))
    await ask(harness, request("second"))
    await ask(harness, request("second", seed=9))
    async with at_work(harness) as registry:
        await ask(harness, request("third", parent=V10, version=f"{MODEL}-third"))
        await eventually(lambda: len(ends(harness)) == 3, "three jobs end")
        waiting = registry.get_sample_value("ratchet_training_jobs_waiting")
    assert ends(harness) == [
        ("first", RunPhase.failed),
        ("second", RunPhase.succeeded),
        ("third", RunPhase.succeeded),
    ]
    assert waiting is not None


async def test_a_restart_does_no_ended_job_again(harness: TrainingHarness) -> None:
    await ask(harness, request("first"))
    async with at_work(harness):
        await eventually(lambda: ends(harness), "the job ends")
    harness.plan({"exit": 9})
    await ask(harness, request("second", parent="nobody"))
    async with at_work(harness):
        await eventually(lambda: len(ends(harness)) == 2, "the second job ends")
    assert harness.starts == []
    assert [job_id for job_id, _ in ends(harness)] == ["first", "second"]


async def test_what_cannot_be_read_is_put_aside_and_the_rest_is_done(
    harness: TrainingHarness,
) -> None:
    await harness.log.append(TRAINING_JOBS, key="x", value=b"{broken")
    await ask(harness, request("first"))
    async with at_work(harness):
        await eventually(lambda: ends(harness), "the job ends")
    assert len(harness.log.all(DEAD_LETTERS)) == 1
    assert ends(harness)[0][1] is RunPhase.succeeded


async def test_model_name_with_slash_is_put_aside_with_the_rule(
    harness: TrainingHarness,
) -> None:
    """Its version could not be paused, aborted or promoted: the name is no one path segment."""
    value = request("first").model_dump(mode="json") | {"model": "acme/assistant"}
    headers = (("ce_type", TrainingRequested.ce_type.encode()),)
    await harness.log.append(
        TRAINING_JOBS, key="first", value=json.dumps(value).encode(), headers=headers
    )
    await ask(harness, request("second"))
    async with at_work(harness):
        await eventually(lambda: ends(harness), "the job ends")
    assert [job_id for job_id, _ in ends(harness)] == ["second"]
    (letter,) = harness.log.all(DEAD_LETTERS)
    assert b"model: Value error, a name has letters" in (letter.value or b"")


async def test_a_typo_in_a_hyperparameter_does_not_wait_behind_a_running_job(
    harness: TrainingHarness,
) -> None:
    harness.plan({"hang": True})
    await ask(harness, request("long"))
    async with at_work(harness):
        await eventually(lambda: harness.starts, "the trainer starts")
        await ask(harness, request("typo", hyperparameters={"learning_rat": 1}))
        await eventually(lambda: ends(harness), "the typo is refused")
        assert ends(harness)[0] == ("typo", RunPhase.failed)
    (said,) = [event.message for event in harness.progress("typo")]
    assert (
        "hyperparameters: learning_rat: unknown name; did you mean learning_rate? known are" in said
    )


async def cancel(harness: TrainingHarness, job_id: str) -> None:
    event = TrainingCancelled(job_id=job_id, reason="wrong data", actor="ann", requested_at=NOW)
    await harness.log.publish(TRAINING_JOBS, key=job_id, event=event, event_id=f"{job_id}:cancel")


async def test_a_running_job_is_cancelled_and_the_next_one_done(harness: TrainingHarness) -> None:
    harness.plan({"hang": True}, {})
    harness.settings = harness.settings.model_copy(update={"stall_s": 600.0})
    await ask(harness, request("long"))
    await ask(harness, request("waiting"))
    await ask(harness, request("next"))
    async with at_work(harness):
        await eventually(lambda: harness.starts, "the trainer starts")
        await cancel(harness, "waiting")
        await eventually(lambda: ends(harness), "a waiting job ends at once")
        await cancel(harness, "long")
        await eventually(lambda: len(ends(harness)) == 3, "all end")
        await cancel(harness, "next")
    assert ends(harness) == [
        ("waiting", RunPhase.failed),
        ("long", RunPhase.failed),
        ("next", RunPhase.succeeded),
    ]
    assert harness.progress("long")[-1].message == "cancelled by ann: wrong data"
    assert len(harness.records()) == 2


async def test_a_job_cancelled_while_nobody_worked_is_not_begun(harness: TrainingHarness) -> None:
    await ask(harness, request("first"))
    await cancel(harness, "first")
    async with at_work(harness):
        await eventually(lambda: ends(harness), "the job ends")
    assert harness.starts == []
    assert harness.progress("first")[-1].message == "cancelled by ann: wrong data"


async def test_enough_pairs_start_a_job_and_the_next_needs_as_many_again(
    harness: TrainingHarness,
) -> None:
    async with at_work(harness, min_pairs=51) as registry:
        late = pair_event(60)
        await harness.log.publish(PREFERENCES, key=late.pair_id, event=late, event_id=late.pair_id)
        await eventually(lambda: ends(harness), "the scheduled job ends")
        await eventually(
            lambda: registry.get_sample_value("ratchet_training_new_pairs", {"model": MODEL}) == 0,
            "its pairs are no longer new",
        )
    assert len(ends(harness)) == 1
    assert len(harness.log.all(TRAINING_JOBS)) == 1
    assert harness.records()[-1].version == f"{MODEL}-v1.1"
    assert harness.records()[-1].dataset.rows > 40


async def test_without_the_secret_of_people_s_texts_jobs_fail_and_do_not_wait(
    harness: TrainingHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await harness.lock_a_pair(monkeypatch)
    await ask(harness, request("first"))
    async with at_work(harness):
        await eventually(lambda: ends(harness), "the job ends")
    assert ends(harness) == [("first", RunPhase.failed)]
