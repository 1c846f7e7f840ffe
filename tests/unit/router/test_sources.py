"""State from the log and from Redis: what is adopted, when, and what an outage does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from redis import ConnectionError as RedisConnectionError

from services.router.sources import Sources
from services.router.state import KEYS, REDIS, REGISTRY, ROLLOUTS, RouterState
from shared.contracts.events.rollouts import Decision, DecisionKind, LeaderElected, Phase
from shared.contracts.topics import ROLLOUTS as ROLLOUTS_TOPIC
from shared.keys import KeyRing
from shared.registry.routing import RoutingState
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.support.waiting import eventually


class FakeRoutingView:
    """Redis as far as the router reads it."""

    def __init__(self) -> None:
        self.away = False
        self.signed = False
        self.states: list[RoutingState] = []
        self.announced: asyncio.Queue[RoutingState | None] = asyncio.Queue()
        self.answers = asyncio.Event()
        self.answers.set()
        self.reads = 0

    async def all(self) -> list[RoutingState]:
        if self.away:
            raise RedisConnectionError("away")
        read = list(self.states)
        self.reads += 1
        await self.answers.wait()
        return read

    async def announcements(self) -> AsyncIterator[RoutingState | None]:
        for state in await self.all():
            yield state
        while True:
            yield await self.announced.get()


class SourcesHarness:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.log = MemoryLog(partitions={ROLLOUTS_TOPIC: 1})
        self.view = FakeRoutingView()
        self.adopted: list[RoutingState] = []
        self.refused: list[int] = []
        self.state = RouterState(self.clock, stale_after_s=60, changed=self.adopted.append)
        self._seq = 0

    async def lead(self) -> int:
        event = LeaderElected(holder="c", at=self.clock.now())
        position = await self.log.publish(ROLLOUTS_TOPIC, key="l", event=event, event_id="e")
        return position.offset

    def decision(self, token: int, rollout: str, weight: int, age_s: float = 0.0) -> Decision:
        self._seq += 1
        return Decision(
            token=token,
            seq=self._seq,
            kind=DecisionKind.weight,
            model="m",
            rollout_id=rollout,
            stable="m-v1.0",
            candidate="m-v1.1",
            phase=Phase.progressing,
            weight=weight,
            actor="c",
            reason="r",
            at=self.clock.now() - timedelta(seconds=age_s),
        )

    async def write(self, decision: Decision) -> None:
        await self.log.publish(
            ROLLOUTS_TOPIC, key=decision.rollout_id, event=decision, event_id=str(decision.seq)
        )

    def run(self) -> asyncio.Task[None]:
        sources = Sources(
            self.state,
            KeyRing(required=True),
            self.log,
            self.view,  # type: ignore[arg-type]
            self.clock,
            refused=lambda: self.refused.append(1),
        )
        return asyncio.create_task(sources.run())

    def weight(self) -> int | None:
        route = self.state.route("m")
        return None if route is None else route.state.weight


@pytest.fixture
async def world() -> SourcesHarness:
    return SourcesHarness()


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_history_is_folded_and_only_its_end_is_routed_by(world: SourcesHarness):
    token = await world.lead()
    for number in range(20):
        await world.write(world.decision(token, f"r{number}", 10_000, age_s=3_600))
    await world.write(world.decision(token, "r20", 500))
    task = world.run()
    await eventually(lambda: world.weight() == 500, "the last state is known")
    assert [state.rollout for state in world.adopted] == ["r20"]
    await world.write(world.decision(token, "r20", 2_000))
    await eventually(lambda: world.weight() == 2_000, "the next decision counts at once")
    assert {ROLLOUTS, REGISTRY, KEYS} <= set(world.state.sources)
    await stop(task)


async def test_redis_alone_is_enough_and_is_heard_only_when_it_knows_something(
    world: SourcesHarness,
):
    world.log.available = False
    task = world.run()
    state = RoutingState.of(world.decision(0, "r1", 500))
    world.view.announced.put_nowait(state)
    await eventually(lambda: world.weight() == 500, "an announcement counts")
    assert REDIS not in world.state.sources
    await stop(task)


async def test_a_lost_announcement_is_found_by_reading_the_view(world: SourcesHarness):
    task = world.run()
    world.view.states = [RoutingState.of(world.decision(0, "r1", 700))]

    def found() -> bool:
        world.clock.advance(5)
        return world.weight() == 700

    await eventually(found, "the view was read again")
    assert REDIS in world.state.sources
    await stop(task)


async def test_an_outage_of_redis_ends_nothing(world: SourcesHarness):
    world.view.away = True
    task = world.run()
    token = await world.lead()
    await eventually(lambda: ROLLOUTS in world.state.sources, "the log was read")
    await world.write(world.decision(token, "r1", 300))
    await eventually(lambda: world.weight() == 300, "the log is enough")
    world.view.away = False
    world.view.states = [RoutingState.of(world.decision(token, "r1", 400))]

    def back() -> bool:
        world.clock.advance(1)
        return world.weight() == 400

    await eventually(back, "Redis is read again")
    assert not task.done()
    await stop(task)


async def test_a_token_that_no_election_gave_moves_nobody_whichever_way_it_comes(
    world: SourcesHarness,
):
    token = await world.lead()
    await world.write(world.decision(token, "r1", 500))
    await world.write(world.decision(10**15, "r1", 10_000))
    task = world.run()
    await eventually(lambda: world.weight() == 500, "the log's word counts")
    world.view.announced.put_nowait(RoutingState.of(world.decision(10**15, "r1", 9_000)))
    await eventually(lambda: world.refused == [1], "the forged state is refused and counted")
    assert world.weight() == 500
    world.view.announced.put_nowait(RoutingState.of(world.decision(token, "r1", 600)))
    await eventually(lambda: world.weight() == 600, "the leader's next one counts")
    await stop(task)


async def test_a_signed_token_may_be_ahead_of_the_log_and_a_reset_forgets_it(
    world: SourcesHarness,
):
    world.view.signed = True
    token = await world.lead()
    await world.write(world.decision(token, "r1", 500))
    task = world.run()
    await eventually(lambda: world.weight() == 500, "the log's word counts")
    world.view.announced.put_nowait(RoutingState.of(world.decision(10**15, "r1", 9_000)))
    await eventually(lambda: world.weight() == 9_000, "Redis may be ahead of the log")
    world.view.announced.put_nowait(None)
    world.view.announced.put_nowait(RoutingState.of(world.decision(token, "r1", 500)))
    await eventually(lambda: world.weight() == 500, "after a reset the rebuilt view counts")
    await stop(task)


async def test_a_poll_that_read_before_a_reset_does_not_bring_the_old_state_back(
    world: SourcesHarness,
):
    task = world.run()
    token = await world.lead()
    old, new = (RoutingState.of(world.decision(token, "r1", weight)) for weight in (9_000, 500))
    world.view.announced.put_nowait(old)
    await eventually(lambda: world.weight() == 9_000, "the old state is known")
    world.view.states = [old]
    world.view.answers.clear()
    before = world.view.reads

    def polled() -> bool:
        world.clock.advance(5)
        return world.view.reads > before

    await eventually(polled, "a poll has read the old state")
    world.view.states = [new]
    world.view.announced.put_nowait(None)
    await eventually(world.view.announced.empty, "the reset was heard")
    world.view.answers.set()
    await eventually(lambda: world.weight() == 500, "what the rebuilt view has counts")
    assert [state.weight for state in world.adopted] == [9_000, 500]
    await stop(task)


async def test_what_a_deposed_leader_put_into_redis_is_ignored(world: SourcesHarness):
    task = world.run()
    old = await world.lead()
    late = RoutingState.of(world.decision(old, "r1", 10_000))
    new = await world.lead()
    await world.write(world.decision(new, "r2", 0))
    await eventually(lambda: world.weight() == 0, "the new leader's state is known")
    world.view.announced.put_nowait(late)
    await eventually(world.view.announced.empty, "the announcement was read")
    assert world.weight() == 0
    await stop(task)
