"""Jobs from the log, the schedule's own, and what cannot be read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from prometheus_client import CollectorRegistry

from services.training.auto import Schedule
from services.training.desk import Desk
from services.training.jobs import JobBook
from services.training.metrics import Metrics
from services.training.runner import Runner
from services.training.snapshot import DatasetStore
from shared.clock import SystemClock
from shared.contracts.events import RunPhase, TrainingRequested
from shared.kafka.deadletters import DeadLetters
from shared.kafka.topics import DEAD_LETTERS, PREFERENCES, TRAINING_JOBS
from shared.registry.follow import RegistryFollower
from tests.support.waiting import eventually
from tests.unit.training.making import MODEL, pair_event, request
from tests.unit.training.room import V10, Room


@contextlib.asynccontextmanager
async def at_work(room: Room, *, min_pairs: int = 0) -> AsyncIterator[CollectorRegistry]:
    """All of the service but its ops routes."""
    settings = room.settings.model_copy(
        update={"min_pairs": min_pairs, "schedule_interval_s": 0.05}
    )
    registry, clock, book = CollectorRegistry(), SystemClock(), JobBook()
    metrics, versions = Metrics(registry), RegistryFollower(room.log)
    store = DatasetStore(settings.datasets_uri)
    runner = Runner(
        event_log=room.log,
        registry=versions,
        store=store,
        settings=settings,
        metrics=metrics,
        clock=clock,
    )
    schedule = Schedule(
        event_log=room.log,
        book=book,
        registry=versions,
        store=store,
        settings=settings,
        metrics=metrics,
        clock=clock,
    )
    desk = Desk(
        event_log=room.log,
        book=book,
        registry=versions,
        runner=runner,
        schedule=schedule,
        dead_letters=DeadLetters(
            room.log, service="training", redact=lambda text: text, metrics=registry
        ),
        metrics=metrics,
        settings=settings,
    )
    work = (versions.run(), desk.follow(), schedule.count(), desk.work())
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield registry
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def ask(room: Room, job: TrainingRequested) -> None:
    await room.log.publish(TRAINING_JOBS, key=job.job_id, event=job, event_id=job.job_id)


def ends(room: Room) -> list[tuple[str, RunPhase]]:
    final = {RunPhase.succeeded, RunPhase.rejected, RunPhase.failed}
    return [(event.job_id, event.phase) for event in room.progress("") if event.phase in final]


async def test_jobs_are_done_one_by_one_in_the_order_of_the_log(room: Room) -> None:
    await ask(room, request("first", parent="nobody"))
    await ask(room, request("second"))
    await ask(room, request("second", seed=9))
    async with at_work(room) as registry:
        await ask(room, request("third", parent=V10, version=f"{MODEL}-third"))
        await eventually(lambda: len(ends(room)) == 3, "three jobs end")
        waiting = registry.get_sample_value("ratchet_training_jobs_waiting")
    assert ends(room) == [
        ("first", RunPhase.failed),
        ("second", RunPhase.succeeded),
        ("third", RunPhase.succeeded),
    ]
    assert waiting is not None


async def test_a_restart_does_no_ended_job_again(room: Room) -> None:
    await ask(room, request("first"))
    async with at_work(room):
        await eventually(lambda: ends(room), "the job ends")
    room.plan({"exit": 9})
    await ask(room, request("second", parent="nobody"))
    async with at_work(room):
        await eventually(lambda: len(ends(room)) == 2, "the second job ends")
    assert room.starts == []
    assert [job_id for job_id, _ in ends(room)] == ["first", "second"]


async def test_what_cannot_be_read_is_put_aside_and_the_rest_is_done(room: Room) -> None:
    await room.log.append(TRAINING_JOBS, key="x", value=b"{broken")
    await ask(room, request("first"))
    async with at_work(room):
        await eventually(lambda: ends(room), "the job ends")
    assert len(room.log.all(DEAD_LETTERS)) == 1
    assert ends(room)[0][1] is RunPhase.succeeded


async def test_enough_pairs_start_a_job_and_the_next_needs_as_many_again(room: Room) -> None:
    async with at_work(room, min_pairs=61) as registry:
        late = pair_event(60)
        await room.log.publish(PREFERENCES, key=late.pair_id, event=late, event_id=late.pair_id)
        await eventually(lambda: ends(room), "the scheduled job ends")
        await eventually(
            lambda: registry.get_sample_value("ratchet_training_new_pairs", {"model": MODEL}) == 0,
            "its pairs are no longer new",
        )
    assert len(ends(room)) == 1
    assert len(room.log.all(TRAINING_JOBS)) == 1
    assert room.records()[-1].version == f"{MODEL}-v1.1"
    assert room.records()[-1].dataset.rows > 40
