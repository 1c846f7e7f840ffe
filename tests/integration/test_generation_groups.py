"""Two sets of engines on one base, on a real Kafka: each batch generation is made by one of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError
from prometheus_client import CollectorRegistry

from services.inference.admission import BatchAdmission
from services.inference.batch import BatchTimeouts, BatchWorker
from services.inference.batch_consumer import BatchConsumer, group_of
from services.inference.engine import EngineClient, EngineLoad, Generated
from services.inference.generation_spans import GenerationSpans
from services.inference.metrics import InferenceMetrics
from shared.clock import SystemClock
from shared.contracts.events.base import Message
from shared.contracts.events.generations import GenerationFinished, GenerationRequested
from shared.contracts.topics import GENERATION_REQUESTS, GENERATION_RESULTS
from shared.kafka.consumer import ConsumerLoop
from shared.kafka.deadletters import DeadLetters
from shared.kafka.envelope import models_by_type
from shared.kafka.generations import generation_record
from shared.kafka.log import read_events
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.observability.trace_export import spans_of
from tests.support.waiting import eventually

REQUESTS = 24
MOVED_S = 60.0
"""For a group to share its partitions out again; a busy machine is slow."""


class EngineSet:
    """A batch worker and its consumer; its engine is played, and answers while `answering` is set."""

    def __init__(self, kafka: str, log: KafkaLog, base: str, version: str) -> None:
        self.base = base
        self.version = version
        self.made = Counter[str]()
        self.answering = asyncio.Event()
        self.answering.set()
        self._stop = asyncio.Event()
        registry, clock = CollectorRegistry(), SystemClock()
        metrics = InferenceMetrics(registry)
        self._admission = BatchAdmission(4, self._idle, clock, metrics)
        worker = BatchWorker(
            client=cast("EngineClient", self),
            adapters=self,
            settings=lambda _: None,
            event_log=log,
            admission=self._admission,
            policy=BatchTimeouts(timeout_s=60, wait_s=60),
            redact=lambda text: text,
            clock=clock,
            metrics=metrics,
            spans=GenerationSpans(spans_of("inference"), clock),
            stop=self._stop,
        )

        def consumer_in(group: str) -> ConsumerLoop:
            return ConsumerLoop(
                KafkaConnection(kafka),
                group=group,
                handler=worker.handle,
                models=models_by_type(GenerationRequested),
                dead_letters=DeadLetters(
                    log, service="inference", redact=lambda text: text, metrics=registry
                ),
                topics=[GENERATION_REQUESTS],
                concurrency=4,
            )

        self._consumer = BatchConsumer(consumer_in, self.base_other_than)

    async def base_other_than(self, key: str) -> str:
        if key == self.base:
            await asyncio.Event().wait()
        return self.base

    async def wait_ready(self, version: str, timeout_s: float) -> bool:
        return version == self.version and timeout_s > 0

    def is_elsewhere(self, version: str) -> bool:
        return version != self.version

    async def generate(
        self, body: Mapping[str, Any], *, timeout_s: float, traceparent: str = ""
    ) -> Generated:
        self.made[body["messages"][0]["content"]] += 1
        async with asyncio.timeout(timeout_s):
            await self.answering.wait()
        turn = {"role": "assistant", "content": "Soon."}
        return Generated("Soon.", "stop", 1, turn)

    async def _idle(self) -> EngineLoad:
        return EngineLoad(0, 0, frozenset())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """The consumer's task; cancelled, it dies with what it has taken and not committed."""
        admission = asyncio.create_task(self._admission.run(self._stop))
        consuming = asyncio.create_task(self._consumer.run(self._stop))
        try:
            yield consuming
        finally:
            for task in (consuming, admission):
                task.cancel()
            await asyncio.gather(consuming, admission, return_exceptions=True)


async def members(kafka: str, group: str) -> int:
    """Members of a group that has shared its partitions out."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        answers: list[Any] = await admin.describe_consumer_groups([group])
    except GroupCoordinatorNotAvailableError:
        return -1  # the broker has just begun
    finally:
        await admin.close()
    (_, _, state, _, _, found, *_) = answers[0].groups[0]
    return len(found) if state == "Stable" else -1


async def asks(log: KafkaLog, version: str, round_: str) -> set[str]:
    """Write the requests of a round; their ids, which are the questions, too."""
    now = datetime.now(UTC)
    names = [f"{version}-{round_}-{number}" for number in range(REQUESTS)]
    records = [
        generation_record(
            GenerationRequested(
                request_id=name,
                batch_id=version,
                purpose="shadow",
                version=version,
                messages=(Message(role="user", content=name),),
                max_tokens=8,
                expires_at=now + timedelta(minutes=5),
            ),
            source="/ratchet/test",
            time=now,
        )
        for name in names
    ]
    await log.append_many(records)
    return set(names)


async def results(log: KafkaLog, version: str) -> Counter[str]:
    """Results by request, of those that were made."""
    events = await read_events(log, (GENERATION_RESULTS,), GenerationFinished, timeout_s=30)
    return Counter(
        one.request_id for one in events if (one.version, one.outcome) == (version, "ok")
    )


async def test_each_request_is_made_by_one_set_and_by_the_other_where_that_one_dies(
    kafka: str, unique: str
) -> None:
    log = KafkaLog(KafkaConnection(kafka), source="/ratchet/test")
    await log.start()
    version, base = f"{unique}-v2.0", f"base-{unique}"
    first, second = (EngineSet(kafka, log, base, version) for _ in range(2))
    older = EngineSet(kafka, log, f"older-{unique}", f"{unique}-v1.0")

    async def have_results(names: set[str]) -> bool:
        return names <= set(await results(log, version))

    async def both_share() -> bool:
        return await members(kafka, group_of(base)) == 2

    async with first.running() as dying, second.running(), older.running():
        await eventually(both_share, "both sets are in the group", MOVED_S)
        both = await asks(log, version, "both")
        await eventually(lambda: have_results(both), "all are made", MOVED_S)
        before = first.made.total()
        assert 0 < before < REQUESTS, "each has its share"
        assert first.made + second.made == Counter(both), "each once, by either"
        assert await results(log, version) == Counter(both)
        assert not older.made
        first.answering.clear()
        left = await asks(log, version, "left")
        await eventually(lambda: first.made.total() > before, "the first has taken some")
        dying.cancel()
        await eventually(lambda: have_results(left), "the other makes what is left", MOVED_S)
        assert await results(log, version) == Counter(both | left)
    await log.stop()
