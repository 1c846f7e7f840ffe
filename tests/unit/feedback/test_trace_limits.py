"""Trace limits: what a trace has no room for is refused before its 202."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.feedback.errors import EventTooLarge, Invalid, ReadModelUnavailable
from services.feedback.read_model.queries import TraceLoad
from services.feedback.read_model.store import LOADED_FEEDBACKS, ReadModelStore
from services.feedback.trace_limits import LARGE_BYTES, TraceLimits
from shared.contracts.events.feedback import MAX_FEEDBACKS, MAX_TRACE_BYTES
from shared.contracts.topics import FEEDBACK
from shared.testing.log import MemoryLog
from tests.support.aggregator import feedback
from tests.support.feedback import feedback_service
from tests.support.read_model import LogBuilder
from tests.support.waiting import eventually

SMALL = 300
T = ("acme", "t1")


class KnownLoads:
    """A read model that holds what a test says."""

    def __init__(self) -> None:
        self.loads: dict[tuple[str, str], TraceLoad] = {}
        self.available = True
        self.asked = 0

    async def trace_load(self, tenant: str, trace_id: str) -> TraceLoad:
        self.asked += 1
        if not self.available:
            raise ReadModelUnavailable("away")
        return self.loads.get((tenant, trace_id), TraceLoad({}, 0))

    async def loaded_traces(self, limit: int) -> frozenset[tuple[str, str]]:
        if not self.available:
            raise ReadModelUnavailable("away")
        return frozenset(self.loads)


@contextlib.asynccontextmanager
async def following(limits: TraceLimits) -> AsyncIterator[None]:
    task = asyncio.create_task(limits.follow())
    await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_burst_beyond_the_limit_is_refused_and_an_edit_is_not() -> None:
    limits = TraceLimits(KnownLoads())
    for number in range(MAX_FEEDBACKS):
        await limits.check(*T, f"f{number}", SMALL)
    with pytest.raises(Invalid, match="no more are kept of one trace"):
        await limits.check(*T, "one-more", SMALL)
    await limits.check(*T, "f3", SMALL)
    await limits.check("acme", "t2", "one-more", SMALL)
    await limits.check("other", "t1", "one-more", SMALL)


async def test_what_other_replicas_took_counts_too() -> None:
    loads = KnownLoads()
    loads.loads[T] = TraceLoad({f"f{number}": SMALL for number in range(MAX_FEEDBACKS - 1)}, 0)
    limits = TraceLimits(loads)
    async with following(limits):
        await limits.check(*T, "f0", SMALL)
        await limits.check(*T, "the-last", SMALL)
        with pytest.raises(Invalid):
            await limits.check(*T, "one-more", SMALL)


async def test_bytes_of_the_interaction_and_of_all_feedback_count() -> None:
    loads = KnownLoads()
    loads.loads[T] = TraceLoad({"f0": 300_000, "f1": 100_000}, 400_000)
    limits = TraceLimits(loads)
    room = MAX_TRACE_BYTES - 800_000
    async with following(limits):
        with pytest.raises(EventTooLarge, match="800000 bytes"):
            await limits.check(*T, "f2", room + 1)
        await limits.check(*T, "f2", room)
        with pytest.raises(EventTooLarge):
            await limits.check(*T, "f3", 1)
        # An edit takes the place of what it edits.
        await limits.check(*T, "f0", 300_000)
        with pytest.raises(EventTooLarge):
            await limits.check(*T, "f0", 300_001)


async def test_only_large_events_and_loaded_traces_ask_the_read_model() -> None:
    loads = KnownLoads()
    limits = TraceLimits(loads)
    for number in range(50):
        await limits.check("acme", f"t{number}", "f", SMALL)
    assert loads.asked == 0
    await limits.check("acme", "t-large", "f", LARGE_BYTES)
    assert loads.asked == 1


async def test_without_a_read_model_feedback_is_taken() -> None:
    loads = KnownLoads()
    loads.available = False
    limits = TraceLimits(loads)
    async with following(limits):
        await limits.check(*T, "f", LARGE_BYTES)


async def test_what_is_remembered_is_bounded() -> None:
    limits = TraceLimits(KnownLoads(), max_recent=10)
    for number in range(1_000):
        await limits.check("acme", f"t{number % 100}", f"f{number}", SMALL)
    assert sum(len(found) for found in limits._recent.values()) <= 10


async def test_the_201st_feedback_of_a_batch_is_a_422_of_its_own() -> None:
    items = [
        {"trace_id": "t", "type": "thumbs_up", "feedback_id": f"f{number}"}
        for number in range(MAX_FEEDBACKS + 1)
    ]
    async with feedback_service(MemoryLog()) as service:
        answer = await service.post("/v1/feedback/batch", {"items": items})
        assert answer.status_code == 207
        assert [one["status"] for one in answer.json()["results"]] == [202] * MAX_FEEDBACKS + [422]
        (error,) = answer.json()["results"][-1]["error"]["errors"]
        assert error["field"] == "trace_id"
        assert len(await service.stored("t")) == MAX_FEEDBACKS


async def test_the_read_model_names_loaded_traces(tmp_path: Path) -> None:
    log = LogBuilder()
    model = ReadModelStore(tmp_path / "model", max_bytes=100_000_000)
    for number in range(MAX_FEEDBACKS):
        event = feedback(f"f{number}", "t", tenant="default")
        model.fold([log.add(FEEDBACK, "t", event)], not_before_ms=0)
    model.close()
    assert LOADED_FEEDBACKS < MAX_FEEDBACKS
    async with feedback_service(MemoryLog(), read_model=tmp_path / "model") as service:
        task = asyncio.create_task(service.traces.follow())
        body = {"trace_id": "t", "type": "thumbs_up", "feedback_id": "one-more"}

        async def refused() -> bool:
            return (await service.post("/v1/feedback", body)).status_code == 422

        await eventually(refused, "the trace is known to be full")
        body["feedback_id"] = "f7"
        assert (await service.post("/v1/feedback", body)).status_code == 202
        task.cancel()
