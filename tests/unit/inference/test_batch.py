from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from services.inference.batch import (
    ATTEMPTS,
    PRIORITY,
    BatchPolicy,
    BatchWorker,
    Gate,
    allowed,
)
from services.inference.engine import EngineClient, Figures
from services.inference.errors import EngineUnavailable, Stopping
from services.inference.metrics import Metrics
from shared.contracts.events import GenerationFinished, GenerationRequested, Message
from shared.kafka.log import LogUnavailable, Record
from shared.kafka.topics import GENERATION_REQUESTS, GENERATION_RESULTS
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.unit.inference.fake_engine import FakeEngine

IDLE = Figures(0, 0, frozenset())


class StubAdapters:
    """An agent whose versions are ready, or not within any wait."""

    def __init__(self) -> None:
        self.ready = {"v1"}
        self.waits: list[float] = []

    async def wait_ready(self, version: str, timeout_s: float) -> bool:
        self.waits.append(timeout_s)
        return version in self.ready


class Rig:
    def __init__(self, fake: FakeEngine, session: aiohttp.ClientSession) -> None:
        self.fake = fake
        self.fake.loaded["v1"] = "path"
        self.clock = ManualClock()
        self.log = MemoryLog()
        self.adapters = StubAdapters()
        self.stop = asyncio.Event()
        self.figures = IDLE
        self.asked: list[dict[str, Any]] = []
        fake.on_generate = self.asked.append
        metrics = Metrics(CollectorRegistry())
        self.gate = Gate(4, self._figures, self.clock, metrics)
        self.worker = BatchWorker(
            client=EngineClient(session, fake.url),
            adapters=self.adapters,
            event_log=self.log,
            gate=self.gate,
            policy=BatchPolicy(timeout_s=5.0, wait_s=10.0),
            redact=lambda text: text.replace("v1", "[VERSION]"),
            clock=self.clock,
            metrics=metrics,
            stop=self.stop,
        )

    async def _figures(self) -> Figures:
        return self.figures

    def request(self, name: str = "r1", **fields: object) -> GenerationRequested:
        return GenerationRequested.model_validate(
            {
                "request_id": name,
                "batch_id": "b",
                "purpose": "shadow",
                "version": "v1",
                "messages": (Message(role="user", content="hello"),),
                "max_tokens": 7,
                "expires_at": self.clock.now() + timedelta(seconds=60),
                **fields,
            }
        )

    async def handle(self, event: GenerationRequested) -> None:
        value = event.to_json()
        record = Record(GENERATION_REQUESTS, 0, 0, event.request_id, value, (), 0)
        await self.worker.handle(event, record)

    def results(self) -> list[GenerationFinished]:
        return [
            GenerationFinished.model_validate_json(record.value or b"")
            for record in self.log.all(GENERATION_RESULTS)
        ]


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with aiohttp.ClientSession() as session:
        with FakeEngine() as fake:
            yield Rig(fake, session)


async def test_result_is_redacted_and_asked_for_at_the_lowest_priority(rig: Rig) -> None:
    await rig.handle(rig.request(seed=3, trace_id="a" * 32))
    (result,) = rig.results()
    assert (result.outcome, result.completion, result.completion_tokens) == (
        "ok",
        "I am [VERSION]",
        3,
    )
    (asked,) = rig.asked
    assert asked["priority"] == PRIORITY
    assert (asked["max_tokens"], asked["seed"], asked["temperature"]) == (7, 3, 0.0)
    headers = dict(rig.log.all(GENERATION_RESULTS)[0].headers)
    assert headers["ce_id"] == b"r1"
    assert headers["traceparent"].startswith(b"00-" + b"a" * 32)


async def test_repeated_request_has_one_result_also_when_both_come_together(rig: Rig) -> None:
    await asyncio.gather(rig.handle(rig.request()), rig.handle(rig.request()))
    await rig.handle(rig.request())
    assert len(rig.results()) == len(rig.asked) == 1


async def test_result_is_not_made_again_where_only_storing_it_failed(rig: Rig) -> None:
    rig.log.available = False
    with pytest.raises(LogUnavailable):
        await rig.handle(rig.request())
    rig.log.available = True
    await rig.handle(rig.request())
    assert len(rig.results()) == len(rig.asked) == 1


async def test_expired_request_is_not_made(rig: Rig) -> None:
    await rig.handle(rig.request(expires_at=rig.clock.now()))
    assert rig.results()[0].outcome == "expired"
    assert rig.asked == []


@pytest.mark.parametrize(("left", "outcome"), [(5, "expired"), (60, "failed")])
async def test_version_that_is_never_ready_is_said(rig: Rig, left: int, outcome: str) -> None:
    expires = rig.clock.now() + timedelta(seconds=left)
    await rig.handle(rig.request(version="v9", expires_at=expires))
    assert rig.results()[0].outcome == outcome
    assert rig.adapters.waits == [min(left, 10.0)]


async def test_engines_refusal_is_a_failed_result(rig: Rig) -> None:
    rig.fake.fail_generations = 1
    await rig.handle(rig.request())
    (result,) = rig.results()
    assert (result.outcome, result.error) == ("failed", "/v1/chat/completions: 400 cannot")


async def test_lost_engine_is_tried_a_bounded_number_of_times(rig: Rig) -> None:
    rig.fake.server.shutdown()
    rig.fake.server.server_close()
    await rig.handle(rig.request())
    assert rig.results()[0].error.startswith(f"after {ATTEMPTS} tries: ")
    assert len(rig.adapters.waits) == ATTEMPTS


async def test_stopping_leaves_the_work_to_the_next_one(rig: Rig) -> None:
    rig.figures = Figures(9, 9, frozenset())
    await rig.gate.look()
    handling = asyncio.create_task(rig.handle(rig.request()))
    await asyncio.sleep(0)
    rig.stop.set()
    with pytest.raises(Stopping):
        await handling
    assert rig.results() == []


async def test_gate_shuts_for_waiting_live_traffic_and_opens_after_it(rig: Rig) -> None:
    rig.figures = Figures(8, 3, frozenset())
    await rig.gate.look()
    handling = [asyncio.create_task(rig.handle(rig.request(f"r{n}"))) for n in range(4)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert rig.asked == []
    rig.figures = IDLE
    await rig.gate.look()
    await asyncio.gather(*handling)
    assert len(rig.results()) == 4


async def test_unreachable_figures_leave_one_place(rig: Rig) -> None:
    async def away() -> Figures:
        raise EngineUnavailable("away")

    gate = Gate(4, away, rig.clock, Metrics(CollectorRegistry()))
    await gate.look()
    async with gate.slot():
        second = asyncio.create_task(gate.slot().__aenter__())
        await asyncio.sleep(0)
        assert not second.done()
        second.cancel()


counts = st.integers(0, 50)


@given(limit=st.integers(1, 32), running=counts, waiting=counts, ours=counts)
def test_more_live_traffic_never_allows_more(
    limit: int, running: int, waiting: int, ours: int
) -> None:
    now = allowed(limit, Figures(running, waiting, frozenset()), ours)
    busier = allowed(limit, Figures(running + 1, waiting, frozenset()), ours)
    assert 0 <= busier <= now <= limit
    assert allowed(limit, IDLE, 0) == limit
    if running + waiting <= ours:
        assert now == limit
