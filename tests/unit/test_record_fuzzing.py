"""Whatever stands in a followed topic, its reader goes on: a bad record is skipped and logged."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from services.aggregator.codec import MODELS
from services.feedback.annotation.board import AnnotationBoard
from services.feedback.annotation.follower import AnnotationFollower
from services.feedback.read_model.store import ReadModelStore
from services.feedback.voting.plan import VotingPlan
from services.rollout.daily_scores import DailyScores
from services.rollout.decision_log import DecisionLog
from services.rollout.leadership import DecisionLogFollower
from services.rollout.shadow_results import ShadowResults
from services.training.jobs import JobQueue
from services.training.sides import DatasetRules
from services.training.snapshot import MODELS as PREFERENCE_MODELS
from services.training.trigger import PairCounter
from services.training.worker import MODELS as TRAINING_MODELS
from shared.contracts.topics import (
    ANNOTATIONS,
    API_KEYS,
    ERASURES,
    EXAMPLES,
    FEEDBACK,
    GENERATION_RESULTS,
    INTERACTIONS,
    PREFERENCES,
    QUALITY,
    RATED,
    ROLLOUT_HOLDS,
    ROLLOUTS,
    TICKS,
    TRAINING_JOBS,
    TRAINING_RUNS,
    VERSIONS,
    load_topics,
)
from shared.kafka.envelope import UnreadableRecord, decode
from shared.kafka.log import EventLog, Record
from shared.keys import KeyRing
from shared.registry.follow import Follower, KeyFollower, RegistryFollower, RoutingFollower
from shared.testing.log import MemoryLog
from tests.support.fuzzed_records import EVENT_EXAMPLES, FuzzedRecords
from tests.unit.aggregator.simulation import log_ms, recovered

RECORDS = (200, pytest.param(10_000, marks=[pytest.mark.verify, pytest.mark.timeout(3600)]))
CAUGHT_UP_S = 60.0
TOPICS = {topic.name: topic for topic in load_topics()}


def annotations(log: EventLog) -> Follower:
    return AnnotationFollower(log, AnnotationBoard(VotingPlan().annotation))


def keys(log: EventLog) -> Follower:
    return KeyFollower(log, KeyRing(required=True))


def decisions(log: EventLog) -> Follower:
    return DecisionLogFollower(log, DecisionLog())


@pytest.mark.parametrize("count", RECORDS)
@pytest.mark.parametrize(
    ("follower", "topics"),
    [
        (RegistryFollower, (VERSIONS,)),
        (RoutingFollower, (ROLLOUTS, ROLLOUT_HOLDS)),
        (decisions, (ROLLOUTS, ROLLOUT_HOLDS)),
        (keys, (API_KEYS,)),
        (DailyScores, (QUALITY,)),
        (ShadowResults, (GENERATION_RESULTS,)),
        (annotations, (ANNOTATIONS, ERASURES)),
    ],
    ids=["versions", "routing", "decisions", "keys", "scores", "shadows", "annotations"],
)
async def test_no_record_ends_a_follower(
    follower: Callable[[EventLog], Follower], topics: tuple[str, ...], count: int
) -> None:
    log = MemoryLog(partitions=dict.fromkeys(topics, 1))
    for topic in topics:
        fuzzed = FuzzedRecords(TOPICS[topic], seed=16)
        await log.append_many([fuzzed.record() for _ in range(count)])
    reader = follower(log)
    following = asyncio.create_task(reader.run())
    caught_up = asyncio.create_task(reader.caught_up(CAUGHT_UP_S))
    await asyncio.wait([following, caught_up], return_when=asyncio.FIRST_COMPLETED)
    if following.done():
        await following
    await caught_up
    following.cancel()


@pytest.mark.parametrize("start", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
async def test_a_day_beyond_the_calendar_does_not_end_the_scores(start: str) -> None:
    window = json.loads((EVENT_EXAMPLES / "ratchet.quality.window.v1.json").read_text())
    windows = [window | {"window": "1d", "start": day} for day in (start, "2026-11-01T00:00:00Z")]
    log = MemoryLog(partitions={QUALITY: 1})
    for key, one in enumerate(windows):
        await log.append(QUALITY, key=str(key), value=orjson.dumps(one))
    scores = DailyScores(log)
    following = asyncio.create_task(scores.run())
    sums = await scores.sums()
    assert list(sums.values()) == [(window["score_count"], window["score_sum"])]
    assert not following.done()
    following.cancel()


def stored(topic: str, count: int, seed: int) -> list[Record]:
    """Mutated records of a topic as a consumer gets them, in order."""
    fuzzed = FuzzedRecords(TOPICS[topic], seed)
    made = (fuzzed.record() for _ in range(count))
    return [
        Record(topic, 0, offset, one.key, one.value, one.headers, timestamp_ms=log_ms(offset))
        for offset, one in enumerate(made)
    ]


@pytest.mark.parametrize("count", RECORDS)
def test_no_record_ends_the_read_model(count: int, tmp_path: Path) -> None:
    store = ReadModelStore(tmp_path / "model", max_bytes=100_000_000)
    for topic in (FEEDBACK, EXAMPLES, PREFERENCES):
        records = stored(topic, count, seed=17)
        for start in range(0, count, 100):
            store.fold(records[start : start + 100], not_before_ms=0)
    assert sum(store.positions().values()) == 3 * count
    store.close()


@pytest.mark.parametrize("count", RECORDS)
def test_no_record_leaves_the_aggregator_with_a_batch_that_it_cannot_write(count: int) -> None:
    """What cannot be folded is refused, as `Consumption` does; what was folded is written."""
    state, folded = recovered(), 0
    for topic in (INTERACTIONS, FEEDBACK, RATED, TICKS):
        for record in stored(topic, count, seed=18):
            try:
                event = decode(record.headers, record.value, MODELS[topic])
                state.apply(topic, record.offset, event, record.value or b"", record.timestamp_ms)
                folded += 1
            except Exception:  # noqa: BLE001 a dead letter of the kind "handler"
                state.skip(topic, record.offset)
            if state.events >= 50:
                state.confirm(state.take())
    state.confirm(state.take())
    assert folded > count // 4


@pytest.mark.parametrize("count", RECORDS)
def test_no_record_ends_training(count: int) -> None:
    queue = JobQueue()
    for topic in (TRAINING_JOBS, TRAINING_RUNS):
        for record in stored(topic, count, seed=19):
            with contextlib.suppress(UnreadableRecord):
                queue.put(decode(record.headers, record.value, TRAINING_MODELS))
    assert list(queue.waiting())
    pairs = PairCounter("assistant", DatasetRules(), labelled=True)
    for record in stored(PREFERENCES, count, seed=20):
        with contextlib.suppress(UnreadableRecord):
            event = decode(record.headers, record.value, PREFERENCE_MODELS)
            pairs.apply(event, PREFERENCES, record.offset)
