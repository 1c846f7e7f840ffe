"""Whatever stands in a followed topic, its reader goes on: a bad record is skipped and logged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from services.feedback.annotation.board import AnnotationBoard
from services.feedback.annotation.follower import AnnotationFollower
from services.feedback.voting.plan import VotingPlan
from services.rollout.daily_scores import DailyScores
from services.rollout.decision_log import DecisionLog
from services.rollout.leadership import DecisionLogFollower
from services.rollout.shadow_results import ShadowResults
from shared.contracts.topics import (
    ANNOTATIONS,
    API_KEYS,
    ERASURES,
    GENERATION_RESULTS,
    QUALITY,
    ROLLOUT_HOLDS,
    ROLLOUTS,
    VERSIONS,
    load_topics,
)
from shared.kafka.log import EventLog
from shared.keys import KeyRing
from shared.registry.follow import Follower, KeyFollower, RegistryFollower, RoutingFollower
from shared.testing.log import MemoryLog
from tests.support.fuzzed_records import FuzzedRecords

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
