"""The router as a process, on real Kafka and Redis, before a stub engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from redis.asyncio import Redis

from benchmarks.stub_engine import TEXT, EngineTraffic, serve_stub
from deploy.local.ports import free_ports
from services.router.id_claims import KEPT_S, PREFIX, RedisIdClaims
from services.router.vote_exchange import MINUTE, STREAM, VoteExchange
from services.router.votes import CAPPED, VoteLimits
from shared.contracts.events.interactions import Outcome
from shared.contracts.events.rollouts import Phase
from tests.support.analyzer import analyzer_twin
from tests.support.router_process import (
    RouterProcessHarness,
    ServiceProcess,
    requests_by_process,
    router_process,
)
from tests.support.votes import a_call, ended
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(180)

NOWHERE = "127.0.0.1:9"


@pytest.fixture
async def engine() -> AsyncIterator[tuple[str, EngineTraffic]]:
    """A stub engine: its address, and what it was asked."""
    stub, seen = await serve_stub("127.0.0.1", 0)
    yield f"http://127.0.0.1:{stub.sockets[0].getsockname()[1]}", seen
    stub.close()
    await stub.wait_closed()


@pytest.fixture
async def world(
    kafka: str,
    redis_server: str,
    unique: str,
    tmp_path: Path,
    engine: tuple[str, EngineTraffic],
) -> AsyncIterator[RouterProcessHarness]:
    redis_url = redis_server.rsplit("/", 1)[0] + "/7"
    async with router_process(kafka, redis_url, unique, tmp_path, engine[0]) as harness:
        yield harness


def turn(content: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": content}]


async def test_the_openai_client_works_unchanged(world: RouterProcessHarness):
    await world.controller.decide(0, outside=True)
    await world.router.start()
    await world.router.ready()
    async with world.openai() as client:
        turns = turn("Where is my parcel? Mail bob@example.com")
        chat = await client.chat.completions.create(model=world.model, messages=turns, user="u1")
        assert chat.choices[0].message.content == TEXT
        assert chat.model == f"{world.model}-stable"
        assert chat.id == chat._request_id
        stream = await client.chat.completions.create(
            model=world.model, messages=turns, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == TEXT
        assert chunks[-1].usage is not None
        completion = await client.completions.create(model=world.model, prompt="Dear customer,")
        assert completion.choices[0].text == TEXT
        response = await client.responses.create(model=world.model, input="Where is my parcel?")
        assert response.output_text == TEXT
        raw = await client.chat.completions.with_raw_response.create(
            model=world.model, messages=turns
        )
        assert len(raw.headers["x-ratchet-trace-id"]) == 32
        given = {chat.id, chunks[0].id, completion.id, response.id}
        given.add(raw.headers["x-ratchet-trace-id"])
        models = [model.id async for model in client.models.list()]
        assert world.model in models
        assert (await client.models.retrieve(world.model)).id == world.model
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="nothing", messages=turns)
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model=world.model, messages=[])
        huge = turn("x" * 10_000_000)
        with pytest.raises(openai.APIStatusError) as raised:
            await client.chat.completions.create(model=world.model, messages=huge)
        assert raised.value.status_code == 413

    async def shipped() -> bool:
        return len(await world.interactions()) == 5

    await eventually(shipped, "all five interactions are in Kafka")
    events = await world.interactions()
    assert {event.trace_id for event in events} == given
    assert {event.endpoint for event in events} == {"chat", "completions"}
    assert {event.completion for event in events} == {TEXT}
    assert "bob@example.com" not in "".join(event.model_dump_json() for event in events)


@pytest.mark.parametrize("source", ["kafka", "redis"])
async def test_weights_arrive_by_either_way_within_a_second(
    world: RouterProcessHarness, engine: tuple[str, EngineTraffic], source: str
):
    away = (
        {"RATCHET_REDIS_URL": f"redis://{NOWHERE}/0"}
        if source == "kafka"
        else {"RATCHET_KAFKA_BOOTSTRAP": NOWHERE}
    )
    to = (source,)
    await world.controller.decide(0, outside=True, to=to)
    await world.router.start(**away)
    await world.router.ready()
    assert await world.arms() == {""}
    await world.controller.decide(0, to=to)
    await eventually(lambda: _arms_are(world, {"stable"}), "the rollout is seen")
    await world.controller.decide(10_000, to=to)
    await eventually(lambda: _arms_are(world, {"candidate"}), "all are on the candidate")
    await world.controller.decide(0, phase=Phase.degraded, to=to)
    decided = asyncio.get_running_loop().time()
    await eventually(lambda: _arms_are(world, {""}), "nobody is on the candidate")
    assert asyncio.get_running_loop().time() - decided < 1.0
    _, seen = engine
    before = len(seen.bodies)
    assert await world.arms(50) == {""}
    assert not [body for body in seen.bodies[before:] if b"-candidate" in body]


async def _arms_are(world: RouterProcessHarness, arms: set[str]) -> bool:
    return await world.arms(4) == arms


async def test_without_a_sign_of_life_everyone_goes_to_stable_and_it_says_so(
    world: RouterProcessHarness,
):
    await world.router.start(RATCHET_ROUTER_STALE_AFTER_S="2")
    await world.router.ready()

    async def decided_anew() -> bool:
        await world.controller.decide(10_000)
        return await world.arms(1) == {"candidate"}

    await eventually(decided_anew, "the candidate has all traffic")
    await eventually(lambda: _arms_are(world, {""}), "everyone is on stable")
    async with httpx.AsyncClient(base_url=world.router.url) as client:
        ready = await client.get("/readyz")
        assert ready.status_code == 200
        assert world.model in ready.json()["checks"]["fresh"]
        metrics = (await client.get("/metrics")).text
        age = next(
            float(line.split()[1])
            for line in metrics.splitlines()
            if line.startswith("ratchet_router_state_age_seconds ")
        )
        assert age > 2
    await eventually(decided_anew, "a new decision brings it back")


async def test_killed_under_load_no_answered_request_is_missing(world: RouterProcessHarness):
    await world.controller.decide(5_000)
    await world.router.start()
    await world.router.ready()
    answered: set[str] = set()

    async def user(number: int) -> None:
        async with httpx.AsyncClient() as client:
            with contextlib.suppress(httpx.TransportError):
                while True:
                    answer = await world.ask(client, f"u{number}")
                    answered.add(answer.headers["x-ratchet-trace-id"])

    users = [asyncio.create_task(user(number)) for number in range(8)]
    await eventually(lambda: len(answered) > 300, "some hundred requests were answered")
    await world.router.end(signal.SIGKILL)
    await asyncio.gather(*users)
    await world.router.start()
    await world.router.ready()

    async def all_there() -> bool:
        return answered <= await world.traces()

    await eventually(all_there, "every answered request is in Kafka")


async def test_killed_while_texts_are_checked_each_event_comes_without_them(
    world: RouterProcessHarness, tmp_path: Path
) -> None:
    await world.controller.decide(0, outside=True)
    async with analyzer_twin() as twin:
        twin.answering.clear()
        await world.router.start(RATCHET_DETECTOR_URL=twin.url)
        await world.router.ready()
        async with httpx.AsyncClient() as client:
            answers = [await world.ask(client, f"u{number}") for number in range(40)]
        await eventually(lambda: bool(twin.asked), "the router asks about texts")
        await world.router.end(signal.SIGKILL)
    left = b"".join(file.read_bytes() for file in tmp_path.rglob("*.spool"))
    assert TEXT.encode() not in left
    await world.router.start()
    await world.router.ready()
    expected = {answer.headers["x-ratchet-trace-id"] for answer in answers}

    async def all_there() -> bool:
        return await world.traces() == expected

    await eventually(all_there, "every answered request is in Kafka")
    for event in await world.interactions():
        assert event.completion == "[UNCHECKED]"
        assert event.untrainable == ("unchecked",)


async def test_with_kafka_away_it_serves_and_ships_later(world: RouterProcessHarness):
    await world.controller.decide(0, outside=True)
    await world.router.start(RATCHET_KAFKA_BOOTSTRAP=NOWHERE, RATCHET_ROUTER_DRAIN_TIMEOUT_S="0.2")
    await world.router.ready()
    async with httpx.AsyncClient() as client:
        answers = [await world.ask(client) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {200}
    assert await world.router.end() == 0
    assert await world.traces() == set()
    await world.router.start()
    await world.router.ready()
    expected = {answer.headers["x-ratchet-trace-id"] for answer in answers}

    async def shipped() -> bool:
        return await world.traces() == expected

    await eventually(shipped, "what was spooled is in Kafka")


async def test_a_stopping_router_answers_what_runs_and_ships_all(world: RouterProcessHarness):
    await world.controller.decide(0, outside=True)
    slow, seen = await serve_stub("127.0.0.1", 0, delay_s=0.8)
    engine = f"http://127.0.0.1:{slow.sockets[0].getsockname()[1]}"
    await world.router.start(RATCHET_ROUTER_ENGINES=engine)
    await world.router.ready()
    async with httpx.AsyncClient() as client:
        running = [asyncio.create_task(world.ask(client)) for _ in range(5)]
        await eventually(lambda: seen.requests == 5, "the requests are under way")
        assert await world.router.end() == 0
        answers = await asyncio.gather(*running)
    slow.close()
    assert {answer.status_code for answer in answers} == {200}
    assert await world.traces() == {a.headers["x-ratchet-trace-id"] for a in answers}


async def test_two_processes_on_one_port_outlive_each_other_and_lose_nothing(
    world: RouterProcessHarness,
):
    await world.controller.decide(5_000)
    first = free_ports(["operations"])["operations"]
    ports = (first, first + 1)
    await world.router.start(
        RATCHET_ROUTER_PROCESSES="2", RATCHET_ROUTER_OPERATIONS_PORT=str(first)
    )
    answered: set[str] = set()
    refused = 0

    async def user(number: int, ended: asyncio.Event) -> None:
        nonlocal refused
        while not ended.is_set():
            # A connection for each request, so that both processes get some of every user's.
            async with httpx.AsyncClient() as client:
                try:
                    answer = await world.ask(client, f"u{number}")
                except httpx.TransportError:
                    refused += 1
                    continue
            # Never a 503: a process takes no connection before it knows the weights.
            assert answer.status_code == 200, answer.text
            answered.add(answer.headers["x-ratchet-trace-id"])

    async with asyncio.TaskGroup() as group:

        async def two() -> bool:
            return len(await requests_by_process(ports)) == 2

        await eventually(two, "both processes are scraped")
        before = await requests_by_process(ports)
        ended = asyncio.Event()
        for number in range(4):
            group.create_task(user(number, ended))

        async def both() -> bool:
            return all(count > 10 for count in (await requests_by_process(ports)).values())

        await eventually(both, "both processes answer")
        children = world.router.children()
        assert len(children) == 2
        os.kill(children[1], signal.SIGKILL)

        async def restarted() -> bool:
            now = await requests_by_process(ports)
            return len(now) == 2 and len(now.keys() - before.keys()) == 1

        await eventually(restarted, "the killed process has a successor of another identity")
        await eventually(both, "both processes answer again")
        ended.set()
    assert await world.router.end() == 0
    assert refused < 50

    async def all_there() -> bool:
        return answered <= await world.traces()

    await eventually(all_there, "every answered request is in Kafka")


async def test_two_routers_do_not_share_a_spool(world: RouterProcessHarness, tmp_path: Path):
    await world.controller.decide(0, outside=True)
    await world.router.start()
    await world.router.ready()
    second = world.another(tmp_path / "second.log")
    await second.start()
    assert await second.exited() == 1
    assert "RATCHET_DATA_DIR" in (tmp_path / "second.log").read_text()
    assert await world.arms(1) == {""}


async def test_a_wrong_setting_ends_it_with_the_name(world: RouterProcessHarness, tmp_path: Path):
    await world.router.start(RATCHET_ROUTER_ENGINES="not a url")
    assert await world.router.exited() == 2
    assert "RATCHET_ROUTER_ENGINES" in (tmp_path / "router.log").read_text()


async def test_replicas_tell_each_other_whose_attempts_went_bad(
    redis_server: str, unique: str
) -> None:
    async with Redis.from_url(redis_server) as redis, Redis.from_url(redis_server) as other:
        here, there = VoteLimits(), VoteLimits()
        exchanges = [
            VoteExchange(here, redis, router="a"),
            VoteExchange(there, other, router="b"),
        ]
        assert here.arm(a_call("eve", rollout=unique), ended(Outcome.crash)) == "candidate"
        assert there.arm(a_call("eve", rollout=unique), ended(Outcome.crash)) == "candidate"
        for exchange in (*exchanges, *exchanges):
            await exchange.exchange()
        arms = [one.arm(a_call("eve", rollout=unique), ended()) for one in (here, there)]
        assert arms == [CAPPED] * 2
        restarted = VoteLimits()
        await redis.xadd(STREAM, {"router": "c", "voter": "no number", "day": "1"})
        await VoteExchange(restarted, redis, router="c").exchange()
        assert restarted.arm(a_call("eve", rollout=unique), ended()) == CAPPED
        assert restarted.arm(a_call("ana", rollout=unique), ended()) == "candidate"


async def test_a_key_s_votes_of_a_minute_are_one_sum_over_two_router_processes(
    world: RouterProcessHarness, tmp_path: Path
) -> None:
    await world.controller.decide(10_000)
    caps = {"RATCHET_ROUTER_KEY_VOTES_PER_MINUTE": "10"}
    second = world.another(tmp_path / "second.log")
    await world.router.start(**caps)
    await second.start(**caps, RATCHET_DATA_DIR=str(tmp_path / "second"))
    try:
        await world.router.ready()
        await second.ready()
        async with httpx.AsyncClient() as client:
            for _ in range(3):
                minute = int(time.time()) // 60
                counted = await _shared_votes(world, second, client, minute)
                if int(time.time()) // 60 == minute:
                    break
        assert counted == [10, 1]
    finally:
        await second.end(signal.SIGKILL)


async def _shared_votes(
    world: RouterProcessHarness, second: ServiceProcess, client: httpx.AsyncClient, minute: int
) -> list[float]:
    """What counts on each router of 12 requests here and, once that is known there, of 6 there."""
    before = [await _counted(client, router) for router in (world.router, second)]
    for number in range(12):
        await world.ask(client, f"u{minute}-{number}")
    await _sums_are(world, minute, 10)
    await world.ask(client, f"u{minute}-12", router=second)
    await _sums_are(world, minute, 11)
    for number in range(13, 18):
        await world.ask(client, f"u{minute}-{number}", router=second)
    after = [await _counted(client, router) for router in (world.router, second)]
    return [now - then for now, then in zip(after, before, strict=True)]


async def _counted(client: httpx.AsyncClient, router: ServiceProcess) -> float:
    lines = (await client.get(f"{router.url}/metrics")).text.splitlines()
    labels = ("ratchet_router_voter_attempts_total{", 'by="key"', 'figure="requests"')
    return sum(float(line.split()[-1]) for line in lines if all(one in line for one in labels))


async def _sums_are(world: RouterProcessHarness, minute: int, count: int) -> None:
    async with Redis.from_url(world.router.env["RATCHET_REDIS_URL"]) as redis:

        async def known() -> bool:
            sums: list[bytes] = await redis.hvals(f"{MINUTE}{minute}")
            over = int(time.time()) // 60 > minute
            return over or {int(one) for one in sums} == {count}

        await eventually(known, f"the votes of a minute are {count} over both routers")


async def test_a_client_s_own_id_is_taken_on_every_replica(redis_server: str, unique: str) -> None:
    async with Redis.from_url(redis_server) as redis, Redis.from_url(redis_server) as other:
        assert await RedisIdClaims(redis).take(unique, "order-17")
        assert not await RedisIdClaims(other).take(unique, "order-17")
        assert await RedisIdClaims(other).take(f"{unique}-other", "order-17")
        assert 0 < await redis.ttl(f"{PREFIX}{unique}:order-17") <= KEPT_S
    async with Redis.from_url(f"redis://{NOWHERE}") as away:
        assert await RedisIdClaims(away).take(unique, "order-17"), "without Redis it serves on"
