"""Traffic mirroring: what is drawn, what the worker is asked, and what is dropped and counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.router.call import Call, EngineAttempt
from services.router.interactions import Interactions
from services.router.mirror import EXPIRES_S, MAX_BYTES, MAX_WAITING, Mirror, sampling_of
from services.router.spool import Spool
from services.router.state import RouteChoice
from shared.contracts.events.base import Message
from shared.contracts.events.generations import GenerationRequested
from shared.contracts.events.rollouts import Phase
from shared.contracts.subject import subject_of
from shared.contracts.topics import GENERATION_REQUESTS
from shared.redaction import Redactor
from shared.registry.routing import RoutingState
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.support.waiting import eventually
from tests.unit.router.test_interactions import TRACE, call_of

HELLO = [{"role": "user", "content": "I am ann@example.org"}]


class MirrorHarness:
    """A mirror behind the router's record of interactions, on a log in memory."""

    def __init__(self, spool: Spool) -> None:
        self.clock = ManualClock()
        self.log = MemoryLog()
        self.registry = CollectorRegistry()
        self.mirror = Mirror(self.log, self.clock, self.registry, Redactor().text, stale_after_s=60)
        self.interactions = Interactions(spool, Redactor(), self.mirror)

    def follow(self, share: int = 10_000) -> None:
        """The routing state of a rollout that mirrors this share."""
        self.mirror.follow(
            RoutingState(
                model="m",
                stable="m-v1.0",
                candidate="m-v1.1",
                rollout="r1",
                phase=Phase.progressing,
                shadow=share,
                token=0,
                seq=0,
                at=self.clock.now(),
            )
        )

    def record(self, call: Call) -> None:
        self.interactions.record(call, 0.3)

    def counted(self, outcome: str) -> float | None:
        name = "ratchet_router_shadow_requests_total"
        return self.registry.get_sample_value(name, {"model": "m", "outcome": outcome})

    def sent(self) -> list[GenerationRequested]:
        return [
            GenerationRequested.model_validate_json(record.value or b"")
            for record in self.log.all(GENERATION_REQUESTS)
        ]


@pytest.fixture
async def harness(tmp_path: Any) -> AsyncIterator[MirrorHarness]:
    spool = Spool(tmp_path, limit_bytes=100_000_000)
    made = MirrorHarness(spool)
    running = asyncio.create_task(made.mirror.run())
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    spool.close()


def shown(*, arm: str = "stable", messages: Any = HELLO, **more: Any) -> Call:
    """A request that stable answered within a rollout."""
    attempts = [EngineAttempt("m-v1.0", arm, 0.0, status=200, duration_s=0.25)]
    call = call_of(messages, attempts=attempts, **more)
    call.choice = RouteChoice("m", "m-v1.0", arm, "r1")
    return call


async def test_a_drawn_request_is_asked_again_redacted_with_what_was_shown(
    harness: MirrorHarness,
) -> None:
    harness.follow()
    harness.record(shown(temperature=0.3, max_tokens=9, user="ann", top_p=0.9))
    await eventually(lambda: harness.counted("sent"), "it was sent")
    (request,) = harness.sent()
    assert (request.version, request.batch_id, request.purpose) == ("m-v1.1", "r1", "shadow")
    assert (request.trace_id, request.request_id) == (TRACE, f"r1/{TRACE}")
    (message,) = request.messages
    assert isinstance(message, Message)
    assert "ann@example.org" not in message.content
    assert request.sampling == {"temperature": 0.3, "max_tokens": 9, "top_p": 0.9}
    assert request.subjects == (subject_of(request.tenant, "ann"),)
    assert request.expires_at == harness.clock.now() + timedelta(seconds=EXPIRES_S)
    assert request.shown is not None
    assert (request.shown.completion, request.shown.latency_ms) == ("Hello.", 250)


async def test_tools_and_their_calls_go_along(harness: MirrorHarness) -> None:
    harness.follow()
    tool = {"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}
    called = {"id": "c", "type": "function", "function": {"name": "search", "arguments": "{}"}}
    harness.record(shown(tools=[tool], completion="", more={"tool_calls": [called]}))
    await eventually(lambda: harness.counted("sent"), "it was sent")
    (request,) = harness.sent()
    assert [one.name for one in request.tools] == ["search"]
    assert request.shown is not None
    assert (request.shown.tool_calls, request.shown.completion) == (("search",), "")


NAMED = {"type": "function", "function": {"name": "search"}}


@pytest.mark.parametrize(
    ("choice", "with_tools", "sent"),
    [
        (NAMED, True, NAMED),
        ({"type": "function", "name": "search"}, True, NAMED),
        ("required", True, "required"),
        ("required", False, None),
    ],
    ids=["chat", "responses", "any tool", "its tools are not kept"],
)
def test_a_chosen_tool_is_asked_for_as_chat_does_or_not_at_all(
    choice: Any, with_tools: bool, sent: Any
) -> None:
    found = sampling_of({"tool_choice": choice, "max_output_tokens": 9}, with_tools=with_tools)
    assert found.pop("tool_choice", None) == sent
    assert found == {"max_tokens": 9}


def test_every_field_that_shapes_the_answer_goes_along() -> None:
    shaping = {"logit_bias": {"7": -100}, "chat_template_kwargs": {"enable_thinking": False}}
    told = {"stream": True, "stream_options": {}, "logprobs": True, "messages": HELLO, "seed": None}
    asked = {**shaping, "reasoning_effort": "low"}
    assert sampling_of({**asked, **told}, with_tools=False) == asked
    responses = {**shaping, "reasoning": {"effort": "low"}, "store": False, "input": "x"}
    assert sampling_of(responses, with_tools=False) == asked


def test_a_field_with_what_people_wrote_is_unsuited() -> None:
    with pytest.raises(KeyError, match="documents"):
        sampling_of({"documents": [{"text": "ann@example.org"}]}, with_tools=False)


@pytest.mark.parametrize("kind", ["allowed_tools", "custom"])
async def test_a_choice_that_chat_cannot_name_is_unsuited(
    harness: MirrorHarness, kind: str
) -> None:
    tool = {"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}
    harness.follow()
    harness.record(shown(tools=[tool], tool_choice={"type": kind, "name": "x"}))
    await eventually(lambda: harness.counted("unsuited") == 1, "it was counted")
    assert harness.sent() == []


@pytest.mark.parametrize(
    "call",
    [shown(arm="candidate"), shown(arm=""), shown(arm="fallback")],
    ids=["the candidate's own", "outside the rollout", "a retry"],
)
async def test_only_what_stable_showed_is_mirrored(harness: MirrorHarness, call: Call) -> None:
    harness.follow()
    harness.record(call)
    harness.record(shown())
    await eventually(lambda: harness.counted("sent"), "the other one was sent")
    assert len(harness.sent()) == 1


async def test_no_share_no_mirroring_and_a_stale_one_lapses(harness: MirrorHarness) -> None:
    harness.record(shown())
    harness.follow()
    harness.follow(0)
    harness.record(shown())
    harness.follow()
    harness.clock.advance(61)
    harness.record(shown())
    harness.follow()
    harness.record(shown())
    await eventually(lambda: harness.counted("sent"), "the last one was sent")
    assert len(harness.sent()) == 1


async def test_about_its_share_is_mirrored(harness: MirrorHarness) -> None:
    harness.follow(2_500)
    for _ in range(MAX_WAITING):
        harness.record(shown())
    await eventually(lambda: harness.counted("sent"), "some were sent")
    assert 0.1 * MAX_WAITING < len(harness.sent()) < 0.45 * MAX_WAITING


@pytest.mark.parametrize(
    ("call", "outcome"),
    [
        (shown(n=2), "unsuited"),
        (shown(response_format={"type": "json_object"}), "unsuited"),
        (shown(messages=[{"role": "user", "content": "x" * MAX_BYTES}]), "too_large"),
        (shown(logit_bias={str(token): 1 for token in range(MAX_BYTES // 8)}), "too_large"),
        (shown(stop=["ann@example.org"]), "unsuited"),
        (shown(structured_outputs={"choice": ["+49 30 1234567"]}), "unsuited"),
    ],
)
async def test_what_cannot_be_asked_again_is_dropped_and_counted(
    harness: MirrorHarness, call: Call, outcome: str
) -> None:
    harness.follow()
    assert harness.counted(outcome) == 0
    harness.record(call)
    await eventually(lambda: harness.counted(outcome) == 1, "it was counted")
    assert harness.sent() == []


async def test_what_waits_is_bounded_and_an_absent_log_costs_no_interaction(
    harness: MirrorHarness,
) -> None:
    harness.follow()
    harness.log.available = False
    for _ in range(MAX_WAITING + 7):
        harness.record(shown())
    assert harness.counted("queue_full") == 7
    assert harness.interactions.lost == 0
    away = "log_unavailable"
    await eventually(lambda: harness.counted(away) == MAX_WAITING, "the others were counted")
    harness.log.available = True
    harness.record(shown())
    await eventually(lambda: harness.counted("sent") == 1, "the mirror goes on")
