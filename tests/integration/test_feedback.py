"""The feedback API and the intake on real Kafka and Redis."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from string import ascii_letters
from typing import Any
from uuid import uuid4

import orjson
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from services.feedback.circuit_breaker import CircuitBreaker
from services.feedback.intake.handler import GROUP, INTAKE_MODELS, Intake
from services.feedback.metrics import FeedbackMetrics
from services.feedback.open_comparisons import Ballot, Comparison, RedisComparisons
from services.feedback.publisher import SOURCE, FeedbackPublisher
from shared.clock import SystemClock
from shared.contracts.events.base import Context, Message
from shared.contracts.events.dead_letters import DeadLetter
from shared.contracts.events.feedback import FeedbackSubmitted
from shared.contracts.events.votes import Choice, Side
from shared.contracts.topics import FEEDBACK, intake_topic, load_topics
from shared.kafka.consumer import ConsumerLoop
from shared.kafka.deadletters import DeadLetters, list_dead_letters, replay
from shared.kafka.log import EventLog, NewRecord, read_to_end
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.redaction.redactor import Redactor
from shared.seal import Seal
from tests.support.feedback import (
    UNLIMITED,
    FeedbackHarness,
    StrawRouter,
    event_of,
    feedback_service,
    straw_router,
)
from tests.support.feedback_suite import FeedbackSuite
from tests.support.rollouts import set_routing
from tests.support.waiting import eventually

TTL_S = 60
PATIENCE_S = 60.0


@pytest.fixture
async def log(kafka: str) -> AsyncIterator[EventLog]:
    real = KafkaLog(KafkaConnection(kafka), source=SOURCE)
    await real.start()
    yield real
    await real.stop()


@pytest.fixture
async def redis(redis_server: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_server) as client:
        yield client


@pytest.fixture
async def router() -> AsyncIterator[StrawRouter]:
    async with straw_router() as straw:
        yield straw


@pytest.fixture
async def service(
    log: EventLog, redis: Redis, router: StrawRouter
) -> AsyncIterator[FeedbackHarness]:
    store = RedisComparisons(redis, ttl_s=TTL_S)
    # How long the brokers may take is another test's matter.
    async with feedback_service(
        log, router_url=router.url, store=store, timeout_s=PATIENCE_S
    ) as started:
        yield started


class TestOnKafka(FeedbackSuite):
    """The common suite."""


QUESTION = {"model": "assistant", "messages": [{"role": "user", "content": "hello"}]}


class TestOpenComparisonsInRedis:
    async def test_flushed_means_expired_and_nothing_worse(
        self, service: FeedbackHarness, redis: Redis
    ) -> None:
        set_routing(service.routing, stable="a-1")
        opened = (await service.post("/v1/comparisons", QUESTION)).json()
        for key in await redis.keys(f"ratchet:comparison:*{opened['comparison_id']}*"):
            await redis.delete(key)
        path = f"/v1/comparisons/{opened['comparison_id']}/vote"
        answer = await service.post(path, {"choice": "left", "user_id": "u"})
        assert answer.status_code == 404
        assert "open a new one" in answer.json()["detail"]

    async def test_everything_kept_there_ends_by_itself(
        self, service: FeedbackHarness, redis: Redis
    ) -> None:
        set_routing(service.routing, stable="a-1")
        opened = (await service.post("/v1/comparisons", QUESTION)).json()
        path = f"/v1/comparisons/{opened['comparison_id']}/vote"
        assert (await service.post(path, {"choice": "tie", "user_id": "u"})).status_code == 200
        keys = await redis.keys(f"ratchet:comparison:*{opened['comparison_id']}*")
        assert len(keys) == 2
        for key in keys:
            assert 0 < await redis.ttl(key) <= TTL_S

    async def test_of_votes_at_the_same_moment_one_counts(self, service: FeedbackHarness) -> None:
        set_routing(service.routing, stable="a-1")
        opened = (await service.post("/v1/comparisons", QUESTION)).json()
        path = f"/v1/comparisons/{opened['comparison_id']}/vote"
        answers = await asyncio.gather(
            *(service.post(path, {"choice": "left", "user_id": f"u{n}"}) for n in range(10))
        )
        assert sorted(answer.status_code for answer in answers) == [200] + [409] * 9
        assert len(await service.stored(opened["comparison_id"])) == 1

    async def test_texts_and_votes_that_nobody_with_the_secret_wrote_are_none(
        self, redis: Redis
    ) -> None:
        store = RedisComparisons(redis, ttl_s=TTL_S, seal=Seal(b"s" * 32))
        side = Side(trace_id="t1", version="v1", completion="hello")
        kept = Comparison(
            comparison_id=uuid4().hex,
            tenant="default",
            model="assistant",
            messages=(Message(role="user", content="hi"),),
            left=side,
            right=side.model_copy(update={"trace_id": "t2"}),
            user_id="u",
            context=Context(),
            panel="",
        )
        await store.put(kept)
        assert await store.get("default", kept.comparison_id) == kept
        key = f"ratchet:comparison:default:{kept.comparison_id}"
        signed: bytes = await redis.get(key)
        unsigned = RedisComparisons(redis, ttl_s=TTL_S)
        assert await unsigned.get("default", kept.comparison_id) == kept, (
            "a replica without one yet"
        )
        await redis.set(key, b"no comparison")
        assert await unsigned.get("default", kept.comparison_id) is None
        await redis.set(key, signed.replace(b"hello", b"poison"))
        assert await store.get("default", kept.comparison_id) is None
        ballot = Ballot(user_id="u", choice=Choice.left, at=datetime.now(UTC))
        forged = ballot.model_copy(update={"user_id": "eve", "choice": Choice.right})
        await redis.set(f"{key}:ballot", forged.model_dump_json())
        assert await store.claim(kept, ballot) == ballot
        assert await store.claim(kept, forged) == ballot, "the first of ours counts"

    async def test_no_redis_is_a_503(self, log: EventLog, router: StrawRouter) -> None:
        nowhere = Redis.from_url("redis://127.0.0.1:9/0", socket_connect_timeout=1)
        store = RedisComparisons(nowhere, ttl_s=TTL_S)
        async with feedback_service(log, router_url=router.url, store=store) as service, nowhere:
            set_routing(service.routing, stable="a-1")
            answer = await service.post("/v1/comparisons", QUESTION)
        assert answer.status_code == 503
        assert answer.json()["code"] == "store_unavailable"


@asynccontextmanager
async def running_intake(bootstrap: str, log: EventLog, tenant: str) -> AsyncIterator[ConsumerLoop]:
    """The intake of one tenant, stopped at the end."""
    registry, clock, redact = CollectorRegistry(), SystemClock(), Redactor().text
    metrics = FeedbackMetrics(registry)
    publisher = FeedbackPublisher(
        log, CircuitBreaker(max_waiting=10_000), metrics, clock, timeout_s=4
    )
    loop = ConsumerLoop(
        KafkaConnection(bootstrap),
        group=f"{GROUP}.{tenant}",
        handler=Intake(
            publisher, metrics, redact=redact, clock=SystemClock(), quotas=UNLIMITED
        ).handle,
        models=INTAKE_MODELS,
        dead_letters=DeadLetters(log, service="feedback", redact=redact, metrics=registry),
        topics=[intake_topic(tenant)],
        concurrency=50,
        default_type=FeedbackSubmitted.ce_type,
    )
    stop = asyncio.Event()
    running = asyncio.create_task(loop.run(stop))
    try:
        yield loop
    finally:
        stop.set()
        await running


async def make_topic(bootstrap: str, name: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    created = await admin.create_topics([NewTopic(name, num_partitions=3, replication_factor=1)])
    assert not any(code for _, code, *_ in created.topic_errors), created
    await admin.close()


@asynccontextmanager
async def record_limit(bootstrap: str, topic: str, limit: int) -> AsyncIterator[None]:
    """Brokers that refuse larger records on a declared topic, until the end."""
    (declared,) = (one.config for one in load_topics() if one.name == topic)
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()

    async def limits() -> set[str]:
        named = ConfigResource(ConfigResourceType.TOPIC, topic)
        responses = await admin.describe_configs([named])
        entries = [one for response in responses for one in response.resources[0][4]]
        return {value for name, value, *_ in entries if name == "max.message.bytes"}

    async def alter(changes: dict[str, str]) -> None:
        # This request replaces the whole configuration: what it leaves out falls to the default.
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, configs=declared | changes)
        for response in await admin.alter_configs([resource]):
            assert not any(code for code, *_ in response.resources), response

    before = await limits()

    async def applied() -> bool:
        return await limits() == {str(limit)}

    async def restored() -> bool:
        return await limits() == before

    try:
        await alter({"max.message.bytes": str(limit)})
        await eventually(applied, "the limit holds")
        yield
    finally:
        await alter({})
        await eventually(restored, "the limit is gone")
        await admin.close()


class TestRefusedForGood:
    """Case oversized-traceparent: what the brokers never take is no outage."""

    async def test_large_records_are_refused_and_others_are_stored_meanwhile(
        self, kafka: str, log: EventLog, service: FeedbackHarness, unique: str
    ) -> None:
        words = " ".join(random.Random(unique).choices(ascii_letters, k=45_000))
        large = {"trace_id": unique, "type": "comment", "value": words}
        good = {"trace_id": unique, "type": "thumbs_up"}
        topic = intake_topic(unique)
        await make_topic(kafka, topic)
        await log.append_many([NewRecord(topic, "large", orjson.dumps(large | {"user_id": "i"}))])
        await log.append_many(
            [NewRecord(topic, str(n), orjson.dumps(good | {"user_id": f"i{n}"})) for n in range(20)]
        )

        async def letters() -> list[DeadLetter]:
            return await list_dead_letters(log, source_topic=topic)

        async def done() -> bool:
            return len(await letters()) == 1 and len(await service.stored(unique)) == 20 + 20 + 1

        async with record_limit(kafka, FEEDBACK, 20_000):
            bodies = [good | {"user_id": f"u{n}"} if n % 2 else large for n in range(40)]
            answers = [await service.post("/v1/feedback", body) for body in bodies]
            assert [answer.status_code for answer in answers] == [413, 202] * 20
            batch = {"items": [good | {"user_id": "b"}, large]}
            answer = await service.post("/v1/feedback/batch", batch)
            assert [result["status"] for result in answer.json()["results"]] == [202, 413]
            async with running_intake(kafka, log, unique):
                await eventually(done, "one dead letter, all others stored")
        (letter,) = await letters()
        assert (letter.source_key, letter.reason) == ("large", "too_large")


class TestIntake:
    async def test_good_records_arrive_bad_ones_are_dead_letters_and_a_replay_counts_once(
        self, kafka: str, log: EventLog, unique: str
    ) -> None:
        topic = intake_topic(unique)
        await make_topic(kafka, topic)
        good = [{"trace_id": f"{unique}-{n}", "type": "rating", "value": 4} for n in range(300)]
        bad = {"trace_id": f"{unique}-bad", "type": "rating", "value": 8, "user_id": "joe@mail.org"}
        null_header: Any = ("traceparent", None)
        await log.append_many(
            [
                NewRecord(topic, str(n), orjson.dumps(body), (null_header,) if n % 2 else ())
                for n, body in enumerate(good)
            ]
        )
        await log.append(topic, key="bad", value=orjson.dumps(bad))
        await log.append(topic, key="worse", value=b"{no json")
        await log.append(topic, key="odd", value=b"{}", headers=(("ce_type", b"odd.v1"),))

        async def stored() -> list[FeedbackSubmitted]:
            records = await read_to_end(log, FEEDBACK, timeout_s=60)
            return [event_of(record) for record in records if record.key.startswith(unique)]

        async def letters() -> dict[str, str]:
            found = await list_dead_letters(log, source_topic=topic)
            return {letter.source_key: f"{letter.reason}: {letter.detail}" for letter in found}

        async def three_letters() -> bool:
            return len(await letters()) == 3

        async with running_intake(kafka, log, unique):
            await eventually(three_letters, "three dead letters", timeout_s=90)
        events = await stored()
        assert {event.trace_id for event in events} == {body["trace_id"] for body in good}
        assert {event.tenant for event in events} == {unique}
        found = await letters()
        assert found["bad"].startswith("schema: value: a rating is a whole number from 1 to 5")
        assert found["worse"].startswith("schema")
        assert found["odd"].startswith("unknown_type")
        (letter,) = [
            one
            for one in await list_dead_letters(log, source_topic=topic)
            if one.source_key == "bad"
        ]
        assert "joe@" not in letter.body

        # The same records again: the identity is the same, so whoever counts counts them once.
        await log.append_many(
            [NewRecord(topic, str(n), orjson.dumps(body)) for n, body in enumerate(good[:10])]
        )
        assert await replay(log, await list_dead_letters(log, source_topic=topic)) == 3

        async def all_again() -> bool:
            return len(await stored()) >= 310

        async with running_intake(kafka, log, unique):
            await eventually(all_again, "the repeated records", timeout_s=90)
        identities = {(event.tenant, event.trace_id, event.feedback_id) for event in await stored()}
        assert len(identities) == 300
