"""Followers of the rollouts' topics: what they read at a start, and in which order."""

from __future__ import annotations

import asyncio

import pytest

from services.rollout.decision_log import DecisionLog
from services.rollout.leadership import DecisionLogFollower
from shared.contracts.topics import ROLLOUT_HOLDS, ROLLOUTS
from shared.kafka.log import PER_TURN, NewRecord, Record, read_to_end
from shared.registry import follow
from shared.registry.follow import RolloutFollower, RoutingFollower
from shared.testing.log import MemoryLog
from tests.support.history import RolloutsHistory

READ = 200
HISTORY = RolloutsHistory(rollouts=4, moves=30, holds=READ)


@pytest.fixture
async def log(monkeypatch: pytest.MonkeyPatch) -> MemoryLog:
    """A log with more signs of life than a start reads."""
    monkeypatch.setattr(follow, "HOLDS_READ", READ)
    log = MemoryLog(partitions={ROLLOUTS: 1, ROLLOUT_HOLDS: 1})
    for batch in HISTORY.batches():
        await log.append_many(batch)
    return log


async def test_a_start_reads_all_decisions_then_the_newest_signs_of_life(log: MemoryLog) -> None:
    read: list[Record] = []
    follower = RolloutFollower(log, read.append)
    running = asyncio.create_task(follower.run())
    await follower.caught_up(30)
    running.cancel()
    moves = len(log.all(ROLLOUTS))
    assert [record.topic for record in read] == [ROLLOUTS] * moves + [ROLLOUT_HOLDS] * READ
    assert len(log.all(ROLLOUT_HOLDS)) > READ
    assert read[-1] == log.all(ROLLOUT_HOLDS)[-1]


async def test_router_and_controller_know_the_unfinished_rollout(log: MemoryLog) -> None:
    routing, decision_log = RoutingFollower(log), DecisionLog()
    decisions = DecisionLogFollower(log, decision_log)
    running = [asyncio.create_task(one.run()) for one in (routing, decisions)]
    for follower in (routing, decisions):
        await follower.caught_up(30)
    for task in running:
        task.cancel()
    last = HISTORY.last
    state = routing.table.get(last.model)
    assert state is not None
    assert (state.rollout, state.weight, state.at) == (last.rollout_id, last.weight, last.at)
    (unfinished,) = decision_log.unfinished()
    assert unfinished.last == last
    assert len(unfinished.moves) == HISTORY.moves


async def test_a_reading_to_the_end_lets_other_tasks_of_the_process_run() -> None:
    log = MemoryLog(partitions={ROLLOUTS: 1})
    await log.append_many([NewRecord(ROLLOUTS, "assistant", b"{}")] * (10 * PER_TURN))
    turns = 0
    at_turn: list[int] = []

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(others())
    await read_to_end(log, ROLLOUTS, timeout_s=60, keep=lambda _: at_turn.append(turns) or True)
    running.cancel()
    assert at_turn[-1] - at_turn[0] >= 9


async def test_a_reading_to_the_end_ends_with_what_its_caller_raises() -> None:
    log = MemoryLog(partitions={ROLLOUTS: 1})
    await log.append(ROLLOUTS, key="assistant", value=b"{}")

    def refuse(_: Record) -> bool:
        raise ValueError("cannot be kept")

    with pytest.raises(ValueError, match="cannot be kept"):
        async with asyncio.timeout(60):
            await read_to_end(log, ROLLOUTS, timeout_s=60, keep=refuse)
