"""Random and mutated requests and records at real services: no 5xx, no restart, memory flat."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from demo.users import MODEL
from deploy.local.stack import Stack
from shared.contracts.events.feedback import FeedbackSubmitted
from shared.contracts.topics import DEAD_LETTERS, intake_topic, load_topics
from shared.kafka.log import read_to_end
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from tests.support.aggregator_process import series_of, total
from tests.support.crowd import STABLE, counting_stack, serve_first_version
from tests.support.fuzzed_records import FuzzedRecords
from tests.support.openapi_requests import OpenApiRequests
from tests.support.waiting import eventually

pytestmark = [pytest.mark.verify, pytest.mark.timeout(3600)]

SERVICES = ("router", "feedback", "intake", "aggregator", "rollout", "training")
TENANT = "default"
SEED = 21
REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "30_000"))
RECORDS = int(os.environ.get("FUZZ_RECORDS", "30_000"))
ROUND = 250
"""Requests between two good ones."""
CHUNK = 500
GOOD_S = 1.0
COUNTED_S = 300.0
GROWTH_BYTES = 64_000_000
"""Of a process from a third of the requests on: what a leak of 3 kB a request would take."""
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
ROUTER_PATHS: dict[str, Any] = {
    path: {"post": {"requestBody": {"content": {"application/json": {"schema": {"const": body}}}}}}
    for path, body in {
        "/v1/chat/completions": CHAT,
        "/v1/completions": {"model": MODEL, "prompt": ["hi"]},
        "/v1/responses": {"model": MODEL, "input": "hi"},
    }.items()
} | {"/v1/models": {"get": {}}}
OPERATIONS: dict[str, Any] = {path: {"get": {}} for path in ("/healthz", "/metrics")}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("fuzzed")
    with counting_stack(directory, "intake", "rollout", "training") as started:
        yield started


class FuzzedServices:
    """The stack's services, what was sent to them, and whether they are as they were."""

    def __init__(self, stack: Stack, http: httpx.AsyncClient, log: KafkaLog) -> None:
        self.stack = stack
        self.http = http
        self.log = log
        self.pids = {name: stack.pid(name) for name in SERVICES}
        self.slowest_good_s = 0.0
        self._numbers = 0

    async def document(self, name: str) -> dict[str, Any]:
        """A service's OpenAPI document with the operations routes; the router has none."""
        paths, components = ROUTER_PATHS if name == "router" else {}, {}
        if name in ("feedback", "rollout"):
            whole = (await self.http.get(f"{self.stack.url(name)}/openapi.json")).json()
            paths, components = whole["paths"], whole["components"]
        return {"paths": {**paths, **OPERATIONS}, "components": components}

    async def good(self) -> None:
        """A good request to each service succeeds within a second."""
        self._numbers += 1
        thumb = {"trace_id": f"good-{self._numbers}", "type": "thumbs_up", "user_id": "u"}
        router, feedback = self.stack.url("router"), self.stack.url("feedback")
        asked: list[tuple[str, Callable[[], Any], int]] = [
            ("chat", lambda: self.http.post(f"{router}/v1/chat/completions", json=CHAT), 200),
            ("feedback", lambda: self.http.post(f"{feedback}/v1/feedback", json=thumb), 202),
            *(
                (name, lambda name=name: self.http.get(f"{self.stack.url(name)}/healthz"), 200)
                for name in SERVICES
            ),
        ]
        for what, call, expected in asked:
            began = time.monotonic()
            answer = await call()
            took = time.monotonic() - began
            self.slowest_good_s = max(self.slowest_good_s, took)
            assert answer.status_code == expected, (what, answer.text)
            assert took < GOOD_S, (what, took)

    def memory(self) -> dict[str, int]:
        """Bytes that each service's process holds now."""
        pages = {
            name: int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            for name, pid in self.pids.items()
        }
        return {name: count * os.sysconf("SC_PAGE_SIZE") for name, count in pages.items()}

    def unharmed(self, before: dict[str, int]) -> dict[str, int]:
        """Growth of each process, none of which was started again."""
        assert {name: self.stack.pid(name) for name in SERVICES} == self.pids
        grown = {name: now - before[name] for name, now in self.memory().items()}
        assert max(grown.values()) < GROWTH_BYTES, grown
        return grown

    async def counted(self) -> float:
        """Feedback on the first version, which no fuzzed record names, that the aggregator counted."""
        found = await series_of(self.stack.ports["aggregator"])
        return total(found.get("ratchet_feedback_total", {}), version=STABLE)


@pytest.fixture
async def services(stack: Stack) -> Any:
    await serve_first_version(stack)
    log = KafkaLog(KafkaConnection(stack.address("kafka")), source="/ratchet/test")
    await log.start()
    async with httpx.AsyncClient(timeout=60) as http:
        yield FuzzedServices(stack, http, log)
    await log.stop()


async def test_no_request_harms_a_service(
    services: FuzzedServices, record_property: Callable[[str, object], None]
) -> None:
    makers = {
        name: OpenApiRequests(await services.document(name), SEED + number)
        for number, name in enumerate(SERVICES)
    }
    before: dict[str, int] = {}
    for number in range(REQUESTS):
        name = SERVICES[number % len(SERVICES)]
        sent = makers[name].request()
        if sent.template == "/v1/read-model/reindex":
            continue  # queries wait for it, rightly
        answer = await services.http.request(
            sent.method,
            f"{services.stack.url(name)}{sent.url}",
            content=sent.content,
            headers=sent.headers,
        )
        assert answer.status_code < 500, (name, sent, answer.text)
        if number % ROUND == 0:
            await services.good()
        if number == REQUESTS // 3:
            before = services.memory()
    record_property("requests", REQUESTS)
    record_property("grown_kb", {k: v // 1000 for k, v in services.unharmed(before).items()})
    record_property("slowest_good_s", round(services.slowest_good_s, 2))


async def test_no_record_ends_a_reader(
    services: FuzzedServices, record_property: Callable[[str, object], None]
) -> None:
    """What was sent goes on being counted, so intake and aggregator read on behind it all."""
    topics = [one for each in load_topics() if each.events for one in each.for_tenants((TENANT,))]
    makers = [FuzzedRecords(topic, SEED + number) for number, topic in enumerate(topics)]
    before: dict[str, int] = {}
    for sent in range(0, RECORDS, CHUNK):
        maker = makers[(sent // CHUNK) % len(makers)]
        await services.log.append_many([maker.record() for _ in range(CHUNK)])
        await services.good()
        if not before and sent >= RECORDS // 3:
            before = services.memory()

    answer = await services.http.post(
        f"{services.stack.url('router')}/v1/chat/completions", json=CHAT
    )
    thumb = {"trace_id": answer.headers["x-ratchet-trace-id"], "type": "thumbs_up", "user_id": "u"}
    counted = await services.counted()
    await services.log.append(
        intake_topic(TENANT),
        key=thumb["trace_id"],
        value=orjson.dumps(thumb),
        headers=(("ce_type", FeedbackSubmitted.ce_type.encode()),),
    )

    async def read_on() -> bool:
        return await services.counted() > counted

    await eventually(read_on, "a good thumb on the intake is counted", COUNTED_S)
    for name in SERVICES:
        await asyncio.to_thread(services.stack.wait_ready, name, COUNTED_S)
    letters = await read_to_end(services.log, DEAD_LETTERS, timeout_s=60)
    assert len(letters) > RECORDS // 100
    record_property("records", RECORDS)
    record_property("grown_kb", {k: v // 1000 for k, v in services.unharmed(before).items()})
    record_property("slowest_good_s", round(services.slowest_good_s, 2))
