"""Reminders: when the week falls behind or something else is missing; once a day, by one replica."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from services.training.dataset_store import DatasetStore
from services.training.jobs import JobQueue
from services.training.metrics import TrainingMetrics
from services.training.plans import week_progress
from services.training.reminder_sender import ReminderSender
from services.training.reminders import PERIOD, CollectionStatus, due
from services.training.scheduler import Scheduler
from services.training.sides import DatasetRules
from services.training.trigger import PairCounter
from shared.clock import SystemClock
from shared.contracts.events.preferences import PairSource
from shared.contracts.events.reminders import ReminderClaimed, ReminderKind
from shared.contracts.topics import REMINDERS
from shared.http import webhooks as delivery
from shared.http.webhooks import TRIES, Webhooks
from shared.registry.follow import RegistryFollower
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.support.waiting import eventually
from tests.support.webhooks import SECRET, WebhookReceiver, is_signed
from tests.unit.training.builders import MODEL, example_event, pair_event, retraction
from tests.unit.training.harness import TrainingHarness
from tests.unit.training.test_worker import at_work

THURSDAY = ManualClock().now()
"""2026-01-01; its week began on Monday, 2025-12-29."""
NOTHING_LACKS = dict.fromkeys(
    ("pairs", "judge_pairs", "heldout_pairs", "category_pairs", "days"), 0
)
DAY_S = PERIOD.total_seconds()


def status(collected: int = 100, **missing: float) -> CollectionStatus:
    """A plan of 100 pairs a week on Thursday at midnight, three days into it."""
    week = week_progress(collected, 100, THURSDAY)
    return CollectionStatus(MODEL, week, NOTHING_LACKS | missing, {})


def claimed(kind: ReminderKind, **figures: float) -> dict[ReminderKind, ReminderClaimed]:
    """That a reminder of these figures was sent on Thursday."""
    claim = ReminderClaimed(reminder_id="r", model=MODEL, kind=kind, figures=figures, at=THURSDAY)
    return {kind: claim}


def texts(
    status: CollectionStatus, last: dict[ReminderKind, ReminderClaimed], *, days: float = 0
) -> list[str]:
    return [one.text for one in due(status, last, THURSDAY + timedelta(days=days))]


@pytest.mark.parametrize(
    ("collected", "hours", "forecast", "behind"),
    [
        (0, 12, None, 0),
        (0, 24, 0, 100),
        (14, 24, 98, 2),
        (15, 24, 105, 0),
        (50, 84, 100, 0),
        (99, 167.99, 99, 1),
        (130, 167.99, 130, 0),
    ],
)
def test_the_week_ends_with_what_its_pace_brings(
    collected: int, hours: float, forecast: int | None, behind: int
) -> None:
    monday = THURSDAY - timedelta(days=3)
    week = week_progress(collected, 100, monday + timedelta(hours=hours))
    assert (week.monday, week.forecast, week.behind) == (monday.date(), forecast, behind)


def test_a_week_counts_what_people_made_since_monday_and_did_not_take_back() -> None:
    monday = (THURSDAY - timedelta(days=3)).date()
    counter = PairCounter(MODEL, DatasetRules(synthetic=True, min_chars=0), labelled=True)
    for number in range(6):
        sunday = THURSDAY - timedelta(days=3, seconds=1)
        made = {"created_at": sunday} if number < 2 else {}
        counter.apply(pair_event(number, **made), "preferences/0", number)
    counter.apply(pair_event(6, source=PairSource.synthetic), "preferences/0", 6)
    counter.apply(example_event(7), "preferences/0", 7)
    counter.apply(retraction("pair-0005"), "preferences/0", 8)
    assert counter.counts({}, monday).week == 3 + 1
    assert counter.counts({}, monday + timedelta(days=7)).week == 0


def test_on_plan_nothing_is_said() -> None:
    assert texts(status(), {}) == []


def test_a_week_that_falls_behind_is_said_each_day_until_it_is_on_plan() -> None:
    said = [
        f"{MODEL}: 30 of 100 pairs came since Monday, 2025-12-29. At this pace the week ends with "
        "70, 30 too few."
    ]
    last = claimed(ReminderKind.behind)
    assert texts(status(30), {}) == said
    assert texts(status(30), last, days=0.99) == []
    assert texts(status(30), last, days=1) == said, "the same again, while it is so"
    assert texts(status(60), last, days=1) == []


def test_a_week_in_which_nothing_came_is_said() -> None:
    (text,) = texts(status(0), {})
    assert "0 of 100 pairs came since Monday" in text


def test_what_is_missing_is_said_when_it_changes() -> None:
    lacks = replace(status(pairs=66, judge_pairs=1, days=2.4), categories={"creative": 6})
    assert texts(lacks, {}) == [
        f"{MODEL}: the next training still lacks 66 pairs, 1 pair set apart for the judge, 3 days "
        "of the plan's cadence, 6 pairs of the category creative."
    ]
    figures = {"pairs": 66.0, "judge_pairs": 1.0, "days": 1.0, "category creative": 6.0}
    last = claimed(ReminderKind.missing, **figures)
    assert texts(lacks, last, days=2) == [], "nothing changed"
    assert texts(replace(lacks, missing=lacks.missing | {"days": 0.1}), last, days=2) == []
    for change in ({"pairs": 65}, {"judge_pairs": 0}, {"heldout_pairs": 1}, {"days": 0}):
        assert texts(replace(lacks, missing=lacks.missing | change), last, days=2), change
        assert not texts(replace(lacks, missing=lacks.missing | change), last, days=0.5), change
    assert texts(replace(lacks, categories={"comparison": 6}), last, days=2)
    assert texts(status(), last, days=2) == [f"{MODEL}: the next training lacks nothing more."]


def test_a_clock_that_was_set_back_costs_one_reminder_more() -> None:
    assert texts(status(0), claimed(ReminderKind.behind), days=-400)


class ReminderReplica:
    """One process's sender with a webhook, on a log that others share."""

    def __init__(
        self,
        log: MemoryLog,
        clock: ManualClock,
        receiver: WebhookReceiver,
        session: aiohttp.ClientSession,
    ) -> None:
        self.registry = CollectorRegistry()
        counter = TrainingMetrics(self.registry).webhooks
        self._webhooks = Webhooks(session, (receiver.url,), lambda: SECRET, SystemClock(), counter)
        self.sender = ReminderSender(log, self._webhooks, clock)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        work = (self.sender.run(), self._webhooks.run())
        tasks = [asyncio.create_task(one) for one in work]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def counted(self, outcome: str) -> float | None:
        labels = {"outcome": outcome}
        return self.registry.get_sample_value("ratchet_training_webhooks_total", labels)


class Scene:
    """A log, a clock, a receiver, and replicas as they are wanted."""

    def __init__(self, receiver: WebhookReceiver, session: aiohttp.ClientSession) -> None:
        self.clock = ManualClock()
        self.log = MemoryLog(partitions={REMINDERS: 1}, clock=self.clock)
        self.receiver = receiver
        self._session = session

    def replica(self) -> ReminderReplica:
        return ReminderReplica(self.log, self.clock, self.receiver, self._session)

    async def got(self, count: int) -> list[dict[str, Any]]:
        await eventually(lambda: len(self.receiver.got) >= count, f"{count} deliveries")
        return self.receiver.payloads

    async def settled(self, replica: ReminderReplica, status: CollectionStatus) -> None:
        """Note a status, and let all that follows from it happen."""
        replica.sender.note(status)
        for _ in range(50):
            await asyncio.sleep(0)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(delivery, "BACKOFF_FIRST_S", 0.001)
    receiver = WebhookReceiver()
    async with receiver.listening(), aiohttp.ClientSession() as session:
        yield Scene(receiver, session)


async def test_a_reminder_is_text_for_a_chat_and_figures_and_is_signed(scene: Scene) -> None:
    replica = scene.replica()
    async with replica.running():
        replica.sender.note(replace(status(30, pairs=66), categories={"creative": 6}))
        behind, missing = await scene.got(2)
        await eventually(lambda: replica.counted("delivered") == 2, "both are counted")
    data = {
        "model": MODEL,
        "week": {"from": "2025-12-29", "collected": 30, "target": 100, "forecast": 70},
        "missing": {"pairs": 66.0, "category creative": 6.0},
    }
    assert [one["type"] for one in (behind, missing)] == ["collection.behind", "collection.missing"]
    assert behind["text"].startswith(f"{MODEL}: 30 of 100 pairs")
    assert (behind["data"], missing["data"]) == (data, data)
    for headers, body in scene.receiver.got:
        assert is_signed(headers, body)
    assert [headers["webhook-id"] for headers, _ in scene.receiver.got] == [
        behind["id"],
        missing["id"],
    ]


async def test_a_restart_says_nothing_again_until_the_next_day(scene: Scene) -> None:
    first = scene.replica()
    async with first.running():
        first.sender.note(status(30))
        await scene.got(1)
    second = scene.replica()
    async with second.running():
        await second.sender.caught_up(60)
        await scene.settled(second, status(31))
        scene.clock.advance(DAY_S - 1)
        await scene.settled(second, status(32))
        assert len(scene.log.all(REMINDERS)) == len(scene.receiver.got) == 1
        scene.clock.advance(1)
        second.sender.note(status(33))
        (_, later) = await scene.got(2)
    assert later["data"]["week"]["collected"] == 33


async def test_of_two_replicas_that_see_the_same_one_sends(scene: Scene) -> None:
    first, second = scene.replica(), scene.replica()
    async with first.running(), second.running():
        for _ in range(5):
            first.sender.note(status(30))
            second.sender.note(status(30))
            await scene.got(1)
        await eventually(
            lambda: (first.counted("delivered") or 0) + (second.counted("delivered") or 0) == 1,
            "one delivery",
        )
        claims = len(scene.log.all(REMINDERS))
        await scene.settled(first, status(30))
        await scene.settled(second, status(30))
    assert len(scene.log.all(REMINDERS)) == claims <= 2
    assert len(scene.receiver.got) == 1


@pytest.mark.parametrize(
    ("statuses", "outcome", "tries"),
    [([500] * TRIES, "failed", TRIES), ([429], "delivered", 2), ([400], "refused", 1)],
)
async def test_what_a_receiver_answers_is_counted_and_said_once(
    scene: Scene, statuses: list[int], outcome: str, tries: int
) -> None:
    scene.receiver.statuses = statuses
    replica = scene.replica()
    async with replica.running():
        replica.sender.note(status(30))
        await eventually(lambda: replica.counted(outcome) == 1, outcome)
        await scene.settled(replica, status(30))
    assert len(scene.receiver.got) == tries
    assert len({headers["webhook-id"] for headers, _ in scene.receiver.got}) == 1
    assert len(scene.log.all(REMINDERS)) == 1


async def test_a_receiver_that_never_answers_holds_nobody_up(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "TIMEOUT_S", 0.05)
    scene.receiver.silent = True
    replica = scene.replica()
    async with replica.running():
        replica.sender.note(status(30))
        await eventually(lambda: replica.counted("failed") == 1, "it is given up")
        scene.clock.advance(DAY_S)
        replica.sender.note(status(31))
        await eventually(lambda: len(scene.log.all(REMINDERS)) == 2, "the next day's is claimed")


async def test_without_kafka_nothing_is_sent_and_later_it_is(scene: Scene) -> None:
    replica = scene.replica()
    async with replica.running():
        await replica.sender.caught_up(60)
        scene.log.available = False
        await scene.settled(replica, status(30))
        assert scene.receiver.got == []
        scene.log.available = True
        scene.clock.advance(60)
        replica.sender.note(status(30))
        await scene.got(1)


async def test_nobody_is_reminded_before_all_pairs_were_read(harness: TrainingHarness) -> None:
    told: list[CollectionStatus] = []
    settings = harness.settings.model_copy(update={"min_pairs": 1000})
    scheduler = Scheduler(
        event_log=harness.log,
        queue=JobQueue(),
        registry=RegistryFollower(harness.log),
        store=DatasetStore(settings.datasets_uri),
        settings=settings,
        metrics=TrainingMetrics(CollectorRegistry()),
        clock=SystemClock(),
        remind=told.append,
    )
    await scheduler.consider(asks=True)
    assert told == []
    counting = asyncio.create_task(scheduler.count())

    async def is_told() -> bool:
        await scheduler.consider(asks=True)
        return bool(told)

    await eventually(is_told, "all pairs were read")
    counting.cancel()
    await asyncio.gather(counting, return_exceptions=True)
    assert told[0].missing["pairs"] < 1000


async def test_the_schedule_tells_where_the_plan_stands_and_nothing_where_it_is_off(
    harness: TrainingHarness,
) -> None:
    told: list[CollectionStatus] = []
    async with at_work(harness, min_pairs=1000, remind=told.append) as registry:
        await eventually(lambda: told, "the status is told")
        shown = {
            figure: registry.get_sample_value(
                "ratchet_training_week_pairs", {"model": MODEL, "figure": figure}
            )
            for figure in ("collected", "target")
        }
        new = registry.get_sample_value("ratchet_training_new_pairs", {"model": MODEL})
    (first, *_) = told
    assert (first.model, first.missing["pairs"]) == (MODEL, 1000 - (new or 0))
    assert first.week.collected == 0, "the pairs are of another week"
    assert shown == {"collected": 0, "target": 100}
    told.clear()
    async with at_work(harness, min_pairs=0, remind=told.append) as registry:
        await eventually(
            lambda: registry.get_sample_value("ratchet_training_new_pairs", {"model": MODEL}),
            "the pairs are counted",
        )
    assert told == []
