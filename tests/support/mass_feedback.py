"""Feedback by the hundred thousand on a stack: what was sent, and a recount of what the log holds.

Duplicates, feedback before its answer, long after it, malformed and withdrawn, through HTTP and through
the intake topic at once. Every call is repeated until it is answered, as a product would.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
import orjson
from aiokafka import AIOKafkaConsumer

from demo.users import MODEL
from deploy.local.stack import Stack
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackWithdrawn
from shared.contracts.topics import DEAD_LETTERS, FEEDBACK, INTERACTIONS, intake_topic
from shared.http.client import request_within
from shared.kafka.log import LogUnavailable, NewRecord
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from tests.support.aggregator import interaction
from tests.support.aggregator_process import record

TENANT = "default"
ROUND = 5_000
SHARES = {"duplicate": 0.10, "early": 0.05, "late": 0.05, "malformed": 0.01, "withdrawn": 0.02}
PER_TRACE = 8
KINDS = ("thumbs_up", "thumbs_up", "thumbs_down", "rating", "comment")
HTTP_BATCH = 250
INTAKE_BATCH = 500
CHATS_AT_ONCE = 24
POSTS_AT_ONCE = 3
ROUNDS_AT_ONCE = 2
LATE_ROUNDS = 3
"""Rounds after which late feedback is sent."""
KEPT = 2_000
"""Accepted items from which duplicates and withdrawals are drawn."""
PATIENCE_S = 240.0
CALL_S = 30.0
APPEND_S = 10.0
SUBMITTED = FeedbackSubmitted.ce_type.encode()
WITHDRAWN = FeedbackWithdrawn.ce_type.encode()

T = TypeVar("T")
Item = dict[str, Any]
Counts = Counter[tuple[str, str]]


@dataclass
class MassFeedback:
    """Sends feedback round by round; `expected` is what was accepted, each feedback_id once."""

    stack: Stack
    version: str
    seed: int
    expected: Counts = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._numbers = 0
        self._accepted: list[Item] = []
        self._late: list[list[Item]] = []

    async def send(self, events: int) -> None:
        """Send about so many events, some rounds at a time."""
        log = KafkaLog(KafkaConnection(self.stack.address("kafka")), source="/ratchet/test")
        await log.start()
        rounds = asyncio.Semaphore(ROUNDS_AT_ONCE)
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            self._session, self._log = session, log
            for _ in range(round(events / ROUND)):
                await rounds.acquire()
                task = group.create_task(self._round())
                task.add_done_callback(lambda _: rounds.release())
        async with aiohttp.ClientSession() as self._session:
            while self._late:
                await self._give_late()
        await log.stop()

    async def _round(self) -> None:
        numbers = {name: round(ROUND * share) for name, share in SHARES.items()}
        fresh = ROUND - sum(numbers.values())
        early = self._items(numbers["early"], self._new_trace)
        traces = await self._chats((fresh + numbers["late"]) // PER_TRACE + 1)
        late = self._items(numbers["late"], lambda: self._rng.choice(traces))
        items = self._items(fresh, lambda: self._rng.choice(traces)) + early
        before = self._sample(numbers["duplicate"])
        broken = [self._broken() for _ in range(numbers["malformed"])]
        await self._give(items + before + broken)
        await self._answer(early)
        await self._withdraw(self._sample(numbers["withdrawn"]))
        self.sent.update({name: count for name, count in numbers.items() if name != "late"})
        self.sent["fresh"] += fresh
        self._accepted = (self._accepted + items)[-KEPT:]
        self._late.append(late)
        if len(self._late) > LATE_ROUNDS:
            await self._give_late()

    async def _give_late(self) -> None:
        late = self._late.pop(0)
        await self._give(late)
        self.sent["late"] += len(late)

    def _items(self, count: int, trace: Callable[[], str]) -> list[Item]:
        items: list[Item] = []
        for _ in range(count):
            kind = self._rng.choice(KINDS)
            self._numbers += 1
            item: Item = {
                "feedback_id": f"m{self.seed}-{self._numbers}",
                "trace_id": trace(),
                "type": kind,
                "user_id": f"u{self._rng.randrange(100_000)}",
            }
            if kind == "rating":
                item["value"] = self._rng.randint(1, 5)
            elif kind == "comment":
                item["value"] = f"Remark {self._numbers}"
            items.append(item)
            self.expected[self.version, kind] += 1
        return items

    def _sample(self, count: int) -> list[Item]:
        return self._rng.sample(self._accepted, min(count, len(self._accepted)))

    def _broken(self) -> Item:
        return {"trace_id": "t", "type": self._rng.choice(("nonsense", "rating", "demonstration"))}

    def _new_trace(self) -> str:
        return f"{self._rng.getrandbits(128):032x}"

    async def _chats(self, count: int) -> list[str]:
        slots = asyncio.Semaphore(CHATS_AT_ONCE)
        url = f"{self.stack.url('router')}/v1/chat/completions"
        message = {"role": "user", "content": "Where is my parcel?"}
        body = orjson.dumps({"model": MODEL, "messages": [message]})

        async def chat() -> str:
            async with slots:

                async def call() -> str:
                    headers = {"x-ratchet-user": f"u{self._rng.randrange(100_000)}"}
                    async with request_within(
                        CALL_S, self._session, "POST", url, data=body, headers=headers
                    ) as answer:
                        await answer.read()
                        answer.raise_for_status()
                        return answer.headers["x-ratchet-trace-id"]

                return await _answered(call)

        return await asyncio.gather(*(chat() for _ in range(count)))

    async def _give(self, items: Sequence[Item]) -> None:
        """Send half of the items by HTTP in batches, half to the intake topic."""
        order = list(items)
        self._rng.shuffle(order)
        half = len(order) // 2
        posts = asyncio.Semaphore(POSTS_AT_ONCE)

        async def post(batch: Sequence[Item]) -> None:
            async with posts:
                await self._post(batch)

        async with asyncio.TaskGroup() as group:
            for start in range(0, half, HTTP_BATCH):
                group.create_task(post(order[start : min(start + HTTP_BATCH, half)]))
            group.create_task(self._publish(order[half:], SUBMITTED))

    async def _post(self, batch: Sequence[Item]) -> None:
        url, body = (
            f"{self.stack.url('feedback')}/v1/feedback/batch",
            orjson.dumps({"items": batch}),
        )

        async def call() -> list[Item]:
            async with request_within(CALL_S, self._session, "POST", url, data=body) as answer:
                raw = await answer.read()
                answer.raise_for_status()
                return orjson.loads(raw)["results"]

        results = await _answered(call)
        for item, result in zip(batch, results, strict=True):
            assert result["status"] == (202 if "feedback_id" in item else 422), (item, result)

    async def _publish(self, items: Sequence[Item], kind: bytes) -> None:
        records = [
            NewRecord(
                intake_topic(TENANT), item["trace_id"], orjson.dumps(item), (("ce_type", kind),)
            )
            for item in items
        ]
        for start in range(0, len(records), INTAKE_BATCH):
            await self._append(records[start : start + INTAKE_BATCH])

    async def _append(self, records: Sequence[NewRecord]) -> None:
        async def call() -> None:
            await self._log.append_many(records, timeout_s=APPEND_S)

        await _answered(call)

    async def _answer(self, early: Sequence[Item]) -> None:
        """The interactions of traces whose feedback came first, as a router writes them."""
        shown = (
            interaction(item["trace_id"], tenant=TENANT, version=self.version) for item in early
        )
        await self._append([record(INTERACTIONS, event) for event in shown])

    async def _withdraw(self, items: Sequence[Item]) -> None:
        half = len(items) // 2
        gone = [
            {"feedback_id": item["feedback_id"], "trace_id": item["trace_id"], "type": item["type"]}
            for item in items
        ]
        await self._publish(gone[:half], WITHDRAWN)
        for item in gone[half:]:
            url = f"{self.stack.url('feedback')}/v1/feedback/{item['feedback_id']}"

            async def call(url: str = url, item: Item = item) -> None:
                asked = {"trace_id": item["trace_id"], "type": item["type"]}
                async with request_within(
                    CALL_S, self._session, "DELETE", url, params=asked
                ) as answer:
                    await answer.read()
                    answer.raise_for_status()

            await _answered(call)


async def _answered(call: Callable[[], Awaitable[T]]) -> T:
    """What the call returns, tried again while its server is away, or says that something is."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await call()
        except aiohttp.ClientResponseError as error:
            if error.status < 500 or time.monotonic() > deadline:
                raise
        except (aiohttp.ClientError, TimeoutError, LogUnavailable):
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.3)


@dataclass
class MassRecount:
    """What the log holds, read as a stream: feedback by version and type, each identity once."""

    feedback: Counts = field(default_factory=Counter)
    unjoined: int = 0
    broken: set[tuple[int, int]] = field(default_factory=set)
    """Partition and offset of the intake's records that no rule lets through."""
    letters: set[tuple[int, int]] = field(default_factory=set)
    """Partition and offset of the intake's records that have a dead letter."""
    other_letters: list[str] = field(default_factory=list)

    @classmethod
    async def of(cls, bootstrap: str) -> MassRecount:
        """Read the topics from their beginning to their present ends."""
        found = cls()
        versions: dict[str, str] = {}
        given: set[str] = set()

        def shown(body: Item, _: Any) -> None:
            versions.setdefault(body["trace_id"], body["version"])

        def said(body: Item, entry: Any) -> None:
            name = body["feedback_id"]
            if dict(entry.headers)["ce_type"] != SUBMITTED or name in given:
                return
            given.add(name)
            version = versions.get(body["trace_id"])
            if version is None:
                found.unjoined += 1
            else:
                found.feedback[version, body["type"]] += 1

        def taken(body: Item, entry: Any) -> None:
            if "feedback_id" not in body:
                found.broken.add((entry.partition, entry.offset))

        def refused(body: Item, _: Any) -> None:
            if body["source_topic"] == intake_topic(TENANT):
                found.letters.add((body["source_partition"], body["source_offset"]))
            else:
                found.other_letters.append(f"{body['source_topic']}: {body['detail']}")

        await _read(bootstrap, INTERACTIONS, shown)
        await _read(bootstrap, FEEDBACK, said)
        await _read(bootstrap, intake_topic(TENANT), taken)
        await _read(bootstrap, DEAD_LETTERS, refused)
        return found


async def _read(bootstrap: str, topic: str, see: Callable[[Item, Any], None]) -> None:
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        places = sorted(consumer.assignment())
        ends = await consumer.end_offsets(places)
        left = {place for place in places if await consumer.position(place) < ends[place]}
        while left:
            for place, entries in (await consumer.getmany(*left, timeout_ms=500)).items():
                for entry in entries:
                    if entry.value is not None and entry.offset < ends[place]:
                        see(orjson.loads(entry.value), entry)
            for place in list(left):
                if await consumer.position(place) >= ends[place]:
                    left.discard(place)
    finally:
        await consumer.stop()
