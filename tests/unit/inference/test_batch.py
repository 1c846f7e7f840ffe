from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from services.inference.admission import BatchAdmission, batch_limit
from services.inference.batch import (
    ATTEMPTS,
    PRIORITY,
    STALE_S,
    BatchTimeouts,
    BatchWorker,
)
from services.inference.engine import EngineClient, EngineLoad
from services.inference.errors import EngineUnavailable, Stopping
from services.inference.generation_spans import GenerationSpans
from services.inference.metrics import InferenceMetrics
from shared.contracts.events.base import Message, Tool
from shared.contracts.events.generations import (
    GenerationFinished,
    GenerationRequested,
    ShownAnswer,
)
from shared.contracts.events.versions import ServedSettings
from shared.contracts.topics import GENERATION_REQUESTS, GENERATION_RESULTS, load_topics
from shared.kafka.envelope import UnreadableRecord, decode, header, models_by_type
from shared.kafka.log import LogUnavailable, Record
from shared.observability.tracing import derived_trace_id, interaction_traceparent
from shared.registry.versions import Registry
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.support.fuzzed_records import FuzzedRecords
from tests.support.rollouts import add_settings
from tests.support.spans import CollectedSpans, context_of
from tests.unit.inference.fake_engine import FakeEngine

REQUESTS = next(one for one in load_topics() if one.name == GENERATION_REQUESTS)
IDLE = EngineLoad(0, 0, frozenset())


class StubAdapters:
    """An agent whose versions are ready, or not within any wait."""

    def __init__(self) -> None:
        self.ready = {"v1"}
        self.waits: list[float] = []
        self.elsewhere = set[str]()

    async def wait_ready(self, version: str, timeout_s: float) -> bool:
        self.waits.append(timeout_s)
        return version in self.ready

    def is_elsewhere(self, version: str) -> bool:
        return version in self.elsewhere


class BatchHarness:
    def __init__(self, fake: FakeEngine, session: aiohttp.ClientSession) -> None:
        self.fake = fake
        self.fake.loaded["v1"] = "path"
        self.clock = ManualClock()
        self.collected = CollectedSpans()
        self.log = MemoryLog()
        self.adapters = StubAdapters()
        self.registry = Registry()
        self.stop = asyncio.Event()
        self.figures = IDLE
        self.asked: list[dict[str, Any]] = []
        fake.on_generate = self.asked.append
        metrics = InferenceMetrics(CollectorRegistry())
        self.admission = BatchAdmission(4, self._figures, self.clock, metrics)
        self.worker = BatchWorker(
            client=EngineClient(session, fake.url),
            adapters=self.adapters,
            settings=self.registry.settings,
            event_log=self.log,
            admission=self.admission,
            policy=BatchTimeouts(timeout_s=5.0, wait_s=10.0),
            redact=lambda text: text.replace("v1", "[VERSION]"),
            clock=self.clock,
            metrics=metrics,
            spans=GenerationSpans(self.collected.spans, self.clock),
            stop=self.stop,
        )

    async def _figures(self) -> EngineLoad:
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
async def harness() -> AsyncIterator[BatchHarness]:
    async with aiohttp.ClientSession() as session:
        with FakeEngine() as fake:
            yield BatchHarness(fake, session)


async def test_a_request_of_another_base_is_left_to_its_workers(harness: BatchHarness) -> None:
    harness.adapters.elsewhere.add("v1")
    await harness.handle(harness.request())
    assert (harness.results(), harness.adapters.waits, harness.asked) == ([], [], [])
    harness.adapters.elsewhere.clear()
    await harness.handle(harness.request())
    assert [one.outcome for one in harness.results()] == ["ok"]


async def test_result_is_redacted_and_asked_for_at_the_lowest_priority(
    harness: BatchHarness,
) -> None:
    await harness.handle(harness.request(seed=3, trace_id="a" * 32))
    (result,) = harness.results()
    assert (result.outcome, result.completion, result.completion_tokens) == (
        "ok",
        "I am [VERSION]",
        3,
    )
    (asked,) = harness.asked
    assert asked["priority"] == PRIORITY
    assert (asked["max_tokens"], asked["seed"], asked["temperature"]) == (7, 3, 0.0)
    headers = dict(harness.log.all(GENERATION_RESULTS)[0].headers)
    assert headers["ce_id"] == b"r1"
    assert headers["traceparent"].startswith(b"00-" + b"a" * 32)


async def test_what_is_made_for_an_answer_has_a_span_in_its_trace_and_again_the_same(
    harness: BatchHarness,
) -> None:
    answer = derived_trace_id("an answer")
    await harness.handle(harness.request("r1", trace_id=answer))
    harness.log.available = False
    for _ in range(2):
        with contextlib.suppress(LogUnavailable):
            await harness.handle(harness.request("r2", trace_id=answer))
        harness.log.available = True
    await harness.handle(harness.request("r3", trace_id="made-by-a-client"))
    await harness.handle(harness.request("r4"))
    first, lost, again = harness.collected.finished()
    assert first.name == f"process {GENERATION_REQUESTS}"
    assert context_of(first.parent) == interaction_traceparent(answer)
    assert first.attributes["ratchet.outcome"] == "ok"
    assert (context_of(lost), lost.status.description) == (context_of(again), "LogUnavailable")
    stored = [header(one.headers, "traceparent") for one in harness.log.all(GENERATION_RESULTS)]
    assert stored == [context_of(first), context_of(again), "", ""]
    assert harness.fake.traceparents == [context_of(first), context_of(again), "", ""]


async def test_a_version_of_settings_answers_in_batch_as_it_does_live(
    harness: BatchHarness,
) -> None:
    polite = ServedSettings(system="Be polite.")
    add_settings(harness.registry, "v1-polite", polite, adapter_of="v1")
    harness.adapters.ready.add("v1-polite")
    await harness.handle(harness.request(version="v1-polite"))
    (asked,) = harness.asked
    assert asked["model"] == "v1"
    assert asked["messages"][0] == {"role": "system", "content": "Be polite."}
    (result,) = harness.results()
    assert (result.version, result.outcome) == ("v1-polite", "ok")


async def test_repeated_request_has_one_result_also_when_both_come_together(
    harness: BatchHarness,
) -> None:
    await asyncio.gather(harness.handle(harness.request()), harness.handle(harness.request()))
    await harness.handle(harness.request())
    assert len(harness.results()) == len(harness.asked) == 1


async def test_result_is_not_made_again_where_only_storing_it_failed(harness: BatchHarness) -> None:
    harness.log.available = False
    with pytest.raises(LogUnavailable):
        await harness.handle(harness.request())
    harness.log.available = True
    await harness.handle(harness.request())
    assert len(harness.results()) == len(harness.asked) == 1


async def test_expired_request_is_not_made(harness: BatchHarness) -> None:
    await harness.handle(harness.request(expires_at=harness.clock.now()))
    assert harness.results()[0].outcome == "expired"
    assert harness.asked == []


async def test_what_expired_long_ago_is_nobody_s_to_be_told_of(harness: BatchHarness) -> None:
    """A new group begins at the topic's beginning: the results of a week are there already."""
    old = {
        name: harness.request(
            request_id=name, expires_at=harness.clock.now() - timedelta(seconds=STALE_S + beyond)
        )
        for name, beyond in (("before", 1), ("just", -1))
    }
    for request in old.values():
        await harness.handle(request)
    assert [(one.request_id, one.outcome) for one in harness.results()] == [("just", "expired")]
    assert harness.asked == []


@pytest.mark.parametrize(("left", "outcome"), [(5, "expired"), (60, "failed")])
async def test_version_that_is_never_ready_is_said(
    harness: BatchHarness, left: int, outcome: str
) -> None:
    expires = harness.clock.now() + timedelta(seconds=left)
    await harness.handle(harness.request(version="v9", expires_at=expires))
    assert harness.results()[0].outcome == outcome
    assert harness.adapters.waits == [min(left, 10.0)]


async def test_engines_refusal_is_a_failed_result(harness: BatchHarness) -> None:
    harness.fake.fail_generations = 1
    await harness.handle(harness.request())
    (result,) = harness.results()
    assert (result.outcome, result.error.partition("; ")[0]) == (
        "failed",
        "/v1/chat/completions: 400 cannot",
    )


@pytest.mark.parametrize(("refusals", "unsuited"), [(2, True), (1, False)])
async def test_a_shadow_request_that_the_base_refuses_too_is_no_fault_of_the_version(
    harness: BatchHarness, refusals: int, unsuited: bool
) -> None:
    harness.fake.fail_generations = refusals
    await harness.handle(harness.request(shown=ShownAnswer(completion="a", latency_ms=1)))
    (result,) = harness.results()
    assert (result.outcome, result.unsuited) == ("failed", unsuited)
    assert [name for path, name in harness.fake.calls if path == "completions"] == ["v1", "base"]


async def test_lost_engine_is_tried_a_bounded_number_of_times(harness: BatchHarness) -> None:
    harness.fake.server.shutdown()
    harness.fake.server.server_close()
    await harness.handle(harness.request())
    assert harness.results()[0].error.startswith(f"after {ATTEMPTS} tries: ")
    assert len(harness.adapters.waits) == ATTEMPTS


async def test_stopping_leaves_the_work_to_the_next_one(harness: BatchHarness) -> None:
    harness.figures = EngineLoad(9, 9, frozenset())
    await harness.admission.look()
    handling = asyncio.create_task(harness.handle(harness.request()))
    await asyncio.sleep(0)
    harness.stop.set()
    with pytest.raises(Stopping):
        await handling
    assert harness.results() == []


async def test_gate_shuts_for_waiting_live_traffic_and_opens_after_it(
    harness: BatchHarness,
) -> None:
    harness.figures = EngineLoad(8, 3, frozenset())
    await harness.admission.look()
    handling = [asyncio.create_task(harness.handle(harness.request(f"r{n}"))) for n in range(4)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert harness.asked == []
    harness.figures = IDLE
    await harness.admission.look()
    await asyncio.gather(*handling)
    assert len(harness.results()) == 4


async def test_unreachable_figures_leave_one_place(harness: BatchHarness) -> None:
    async def away() -> EngineLoad:
        raise EngineUnavailable("away")

    admission = BatchAdmission(4, away, harness.clock, InferenceMetrics(CollectorRegistry()))
    await admission.look()
    async with admission.slot():
        second = asyncio.create_task(admission.slot().__aenter__())
        await asyncio.sleep(0)
        assert not second.done()
        second.cancel()


counts = st.integers(0, 50)


@given(limit=st.integers(1, 32), running=counts, waiting=counts, ours=counts)
def test_more_live_traffic_never_allows_more(
    limit: int, running: int, waiting: int, ours: int
) -> None:
    now = batch_limit(limit, EngineLoad(running, waiting, frozenset()), ours)
    busier = batch_limit(limit, EngineLoad(running + 1, waiting, frozenset()), ours)
    assert 0 <= busier <= now <= limit
    assert batch_limit(limit, IDLE, 0) == limit
    if running + waiting <= ours:
        assert now == limit


async def test_a_shadow_answer_is_compared_and_not_kept(harness: BatchHarness) -> None:
    tool = Tool(name="search", parameters='{"type":"object"}')
    shown = ShownAnswer(completion="I am [VERSION]", latency_ms=100)
    sampling = {"temperature": 0.5, "top_p": 0.9}
    await harness.handle(harness.request(shown=shown, tools=(tool,), sampling=sampling))
    (result,) = harness.results()
    assert (result.outcome, result.completion) == ("ok", "")
    assert result.comparison is not None
    assert (result.comparison.similarity, result.comparison.length_ratio) == (1.0, 1.0)
    (asked,) = harness.asked
    assert (asked["temperature"], asked["top_p"], asked["priority"]) == (0.5, 0.9, PRIORITY)
    assert "max_tokens" not in asked
    assert asked["tools"][0]["function"]["name"] == "search"


async def test_an_evaluation_s_answer_of_tool_calls_is_kept_whole(harness: BatchHarness) -> None:
    function = {"name": "search", "arguments": '{"for": "v1"}'}
    call = {"id": "c1", "type": "function", "function": function}
    harness.fake.message = {"content": None, "tool_calls": [call]}
    await harness.handle(harness.request(purpose="evaluation"))
    (result,) = harness.results()
    assert result.completion == '[{"name":"search","arguments":{"for":"[VERSION]"}}]'
    assert result.answer is not None
    (kept,) = result.answer.tool_calls
    assert (kept.name, kept.arguments) == ("search", '{"for":"[VERSION]"}')


async def test_nothing_is_made_for_who_was_erased_and_results_name_whose_they_are(
    harness: BatchHarness,
) -> None:
    subject = "a" * 64
    whose = {"tenant": "acme", "subjects": (subject,)}
    closed = {"keys": ("k",), "data": "x"}
    await harness.handle(harness.request("r1", encrypted=closed, **whose))
    await harness.handle(harness.request("r2", **whose))
    gone, made = harness.results()
    assert (gone.outcome, made.outcome) == ("expired", "ok")
    assert len(harness.asked) == 1
    assert all((one.tenant, one.subjects) == ("acme", (subject,)) for one in (gone, made))


async def test_what_cannot_be_written_as_json_is_a_failed_result_at_once(
    harness: BatchHarness,
) -> None:
    await harness.handle(harness.request(sampling={"top_k": 2**70}))
    (result,) = harness.results()
    assert result.outcome == "failed"
    assert "cannot be written as JSON" in result.error
    assert harness.asked == []


@pytest.mark.parametrize(
    "count", [200, pytest.param(10_000, marks=[pytest.mark.verify, pytest.mark.timeout(3600)])]
)
async def test_no_record_is_left_without_a_result(harness: BatchHarness, count: int) -> None:
    """What decodes gets one result, whatever it asks for; an exception would be a dead letter."""
    harness.adapters.ready.add("assistant-v1.1")
    harness.fake.loaded["assistant-v1.1"] = "path"
    fuzzed, models = FuzzedRecords(REQUESTS, seed=22), models_by_type(GenerationRequested)
    asked: set[str] = set()
    for offset in range(count):
        one = fuzzed.record()
        record = Record(one.topic, 0, offset, one.key, one.value, one.headers, 0)
        with contextlib.suppress(UnreadableRecord):
            event = decode(record.headers, record.value, models)
            assert isinstance(event, GenerationRequested)
            # One id is one result: records of the example's id would hide each other.
            event = event.model_copy(update={"request_id": f"{event.request_id[:100]}-{offset}"})
            await harness.worker.handle(event, record)
            asked.add(event.request_id)
    results = harness.results()
    assert {one.request_id for one in results} == asked
    assert len(results) == len(asked) > count // 10
    assert any(one.outcome == "ok" for one in results)
