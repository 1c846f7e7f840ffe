"""The routing state in real Redis, and its rebuild from real Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from redis.asyncio import Redis

from shared.contracts.events.rollouts import Decision, DecisionKind, LeaderElected, Phase
from shared.contracts.events.versions import record_key
from shared.contracts.topics import ROLLOUTS, VERSIONS
from shared.kafka.log import EventLog
from shared.registry.follow import RegistryFollower, RoutingFollower, rebuild_views
from shared.registry.routing import RoutingState
from shared.registry.view import CHANNEL, KEY_PREFIX, MODELS_KEY, RESET, RoutingView
from shared.seal import Seal
from shared.testing.clock import START
from shared.testing.log import MemoryLog
from tests.support.waiting import eventually
from tests.unit.shared.test_registry import version_record

DATABASE = 9


@pytest.fixture
async def redis(redis_server: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_server.rsplit("/", 1)[0] + f"/{DATABASE}")
    await client.flushdb()
    yield client
    await client.aclose()


def decision(token: int, seq: int, weight: int, model: str = "assistant") -> Decision:
    return Decision(
        token=token,
        seq=seq,
        kind=DecisionKind.weight,
        model=model,
        rollout_id="r1",
        stable="v1",
        candidate="v2",
        phase=Phase.progressing,
        weight=weight,
        actor="controller",
        reason="next step",
        at=START + timedelta(seconds=seq),
    )


def state(token: int, seq: int, weight: int) -> RoutingState:
    return RoutingState.of(decision(token, seq, weight))


async def test_an_older_state_never_replaces_a_newer_one(redis: Redis) -> None:
    view = RoutingView(redis)
    assert await view.put(state(5, 2, 500))
    assert not await view.put(state(5, 1, 100))
    assert not await view.put(state(4, 9, 9000))
    assert await view.put(state(6, 0, 0))
    assert [(s.token, s.weight) for s in await view.all()] == [(6, 0)]


async def test_announcements_bring_the_present_state_first(redis: Redis) -> None:
    view = RoutingView(redis)
    await view.put(state(1, 0, 500))
    heard: list[int] = []

    async def listen() -> None:
        async for announced in view.announcements():
            heard.append(-1 if announced is None else announced.weight)  # noqa: PERF401 heard while it goes on

    listening = asyncio.create_task(listen())
    await eventually(lambda: heard == [500], "the present state is heard")
    await view.put(state(1, 1, 2000))
    await eventually(lambda: heard == [500, 2000], "the new state is heard")
    await view.announce_reset()
    await eventually(lambda: heard == [500, 2000, -1], "the reset is heard")
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


SECRET, NEXT = Seal(b"s" * 32), Seal(b"t" * 32, b"s" * 32)


async def test_what_nobody_with_a_secret_wrote_is_refused_and_replaced(redis: Redis) -> None:
    refused: list[int] = []
    view = RoutingView(redis, SECRET, refused=lambda: refused.append(1))
    assert await view.put(state(1, 0, 500))
    await redis.sadd(MODELS_KEY, b"\xff no name")
    assert [one.weight for one in await view.all()] == [500], "a name that nobody wrote"
    forger = RoutingView(redis)
    await redis.set(KEY_PREFIX + "assistant", state(10**15, 0, 10_000).model_dump_json())
    assert await view.all() == []
    assert refused == [1]
    assert await view.put(state(1, 1, 600)), "the controller's state replaces a forged one"
    assert [one.weight for one in await view.all()] == [600]
    assert not await view.put(state(1, 0, 700)), "an older one is still refused"
    await redis.set(KEY_PREFIX + "assistant", b"\xff not json")
    assert await view.put(state(1, 2, 800))
    await redis.sadd(MODELS_KEY, "made-up")
    await redis.set(KEY_PREFIX + "made-up", "{}")
    await forger.clear()
    assert await redis.keys(f"{KEY_PREFIX}*") == []


@pytest.mark.parametrize(
    "forged",
    [
        "{}",
        "[]",
        "not json",
        '{"token": "x", "seq": 1}',
        '{"token": {}, "seq": []}',
        '{"token": true, "seq": null}',
        '{"token": 1e400, "seq": -1e400',
    ],
)
async def test_a_value_without_an_order_never_stops_the_writes(redis: Redis, forged: str) -> None:
    refused: list[int] = []
    view = RoutingView(redis, refused=lambda: refused.append(1))
    await redis.set(KEY_PREFIX + "assistant", forged)
    assert await view.put(state(1, 0, 500)), "it takes the place of what nobody can read"
    assert refused == [1], "and is counted"
    assert await view.put(state(1, 1, 600))
    assert refused == [1]


async def test_keys_of_another_type_never_stop_the_writes(redis: Redis) -> None:
    view = RoutingView(redis)
    await redis.rpush(KEY_PREFIX + "assistant", "a", "list")
    await redis.set(MODELS_KEY, "no set")
    assert await view.put(state(1, 0, 500))
    assert [one.weight for one in await view.all()] == [500]


async def test_secrets_are_replaced_while_states_and_resets_are_heard(redis: Redis) -> None:
    heard: list[int] = []

    async def listen() -> None:
        async for announced in RoutingView(redis, NEXT).announcements():
            heard.append(-1 if announced is None else announced.weight)  # noqa: PERF401 heard while it goes on

    old, new, forger = RoutingView(redis, SECRET), RoutingView(redis, NEXT), RoutingView(redis)
    await old.put(state(1, 0, 500))
    listening = asyncio.create_task(listen())
    await eventually(lambda: heard == [500], "the state of the old secret is heard")
    await forger.announce_reset()
    await redis.publish(CHANNEL, state(2, 0, 9_000).model_dump_json())
    old_reset = SECRET.close(CHANNEL, f"{RESET} {(START - timedelta(days=1)).isoformat()}")
    await redis.publish(CHANNEL, old_reset)
    await new.put(state(1, 1, 600))
    await old.announce_reset()
    await eventually(lambda: heard == [500, 600, -1], "forged and recorded words are passed over")
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


async def write_rollout(log: EventLog) -> None:
    elected = LeaderElected(holder="a", at=START)
    first = await log.publish(ROLLOUTS, key="leader", event=elected, event_id="e1")
    second = await log.publish(ROLLOUTS, key="leader", event=elected, event_id="e2")
    for one in (
        decision(first.offset, 0, 500),
        decision(second.offset, 0, 2000),
        decision(first.offset, 1, 10_000),
        decision(second.offset, 0, 100, "other"),
    ):
        await log.publish(ROLLOUTS, key="r1", event=one, event_id=f"{one.token}-{one.seq}")


async def test_a_flushed_view_is_rebuilt_without_the_deposed_leaders_word(redis: Redis) -> None:
    log, view = MemoryLog(partitions={ROLLOUTS: 1, VERSIONS: 1}), RoutingView(redis)
    await write_rollout(log)
    await view.put(state(0, 0, 1))
    await redis.flushdb()
    assert await rebuild_views(log, view) == 2
    assert {s.model: s.weight for s in await view.all()} == {"assistant": 2000, "other": 100}


async def test_followers_keep_up_and_step_over_what_they_cannot_read() -> None:
    log = MemoryLog(partitions={ROLLOUTS: 1, VERSIONS: 1})
    await write_rollout(log)
    await log.append(VERSIONS, key=record_key("bad"), value=b"{}")
    heard: list[RoutingState] = []
    routing, registry = RoutingFollower(log, heard.append), RegistryFollower(log)
    tasks = [asyncio.create_task(follower.run()) for follower in (routing, registry)]
    await routing.caught_up(5)
    await registry.caught_up(5)
    assert [(s.model, s.weight) for s in heard] == [
        ("assistant", 2000),
        ("other", 100),
    ]
    await log.append(VERSIONS, key=record_key("v1"), value=version_record("v1").to_json())
    await eventually(lambda: registry.registry.get("v1") is not None, "the version is known")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
