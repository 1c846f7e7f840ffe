"""Traffic mirroring: a share of live requests goes to a candidate in a shadow step, unseen.

The batch worker answers them at the lowest priority and compares. A request is mirrored after its
answer has left, from its redacted event. Nothing waits: what does not fit is dropped and counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from random import random
from typing import Any, NamedTuple

import orjson
import structlog
from prometheus_client import CollectorRegistry, Counter
from pydantic import ValidationError

from services.router.call import Call
from services.router.fields import ENGINE_FIELDS
from shared.clock import Clock
from shared.contracts.events.base import WEIGHT_SCALE
from shared.contracts.events.generations import (
    GenerationRequested,
    ShownAnswer,
)
from shared.contracts.events.interactions import Arm, Outcome, Purpose
from shared.contracts.subject import subjects_in
from shared.kafka.generations import generation_record
from shared.kafka.log import EventLog, LogUnavailable, NewRecord
from shared.observability.events import Unavailable
from shared.redaction.detection import Redact, redacted, withheld
from shared.redaction.turns import clean_json
from shared.registry.routing import RoutingState

log = structlog.get_logger(__name__)

MAX_WAITING = 256
MAX_BYTES = 64 * 1024
"""Of one event that is mirrored, and of its request's fields: 32 MiB wait at most."""
BATCH = 32
EXPIRES_S = 120.0
"""Age at which a worker that lags drops a request instead of answering it."""
SOURCE = "/ratchet/router"
UNSUITED = ("untrainable", "response_format")
"""Fields of events whose requests cannot be asked again as they were."""
NOT_SHADOWED = frozenset(
    [
        "echo",
        "logprob_token_ids",
        "logprobs",
        "messages",
        "n",
        "prompt_logprobs",
        "return_mm_kwargs",
        "return_prompt_text",
        "return_token_ids",
        "return_token_offsets",
        "return_tokens_as_token_ids",
        "routed_experts_prompt_start",
        "stream",
        "stream_interval",
        "stream_options",
        "tools",
        "top_logprobs",
    ]
)
"""Fields that the event has in another form, or that change how an answer is told and not what it
says; a shadow request has every other field that went to the engine."""
UNREDACTED = ("documents", "mm_payload")
"""Fields with texts or media of people, which no topic may hold as they came."""
RESPONSES_NAMES = {"max_output_tokens": "max_tokens"}
"""Fields of the Responses API under the chat API's name; others that chat does not know are left
out, and `reasoning` names the effort within."""
SENT, QUEUE_FULL, TOO_LARGE, NOT_SUITED, LOG_AWAY = OUTCOMES = (
    "sent",
    "queue_full",
    "too_large",
    "unsuited",
    "log_unavailable",
)
"""What became of a request that was drawn."""


class Mirrored(NamedTuple):
    """One drawn request: its redacted event, and what the event leaves out."""

    model: str
    candidate: str
    rollout: str
    event: bytes
    fields: bytes
    """What went to the engine, but for the model."""


class Mirror:
    """Mirrors live requests of models whose rollout is in a shadow step."""

    def __init__(
        self,
        event_log: EventLog,
        clock: Clock,
        registry: CollectorRegistry,
        redact: Redact,
        *,
        stale_after_s: float,
    ) -> None:
        self._log = event_log
        self._clock = clock
        self._redact = redact
        self._stale_after_s = stale_after_s
        self._states: dict[str, RoutingState] = {}
        self._waiting: deque[Mirrored] = deque()
        self._grown = asyncio.Event()
        self._requests = Counter(
            "ratchet_router_shadow_requests",
            "Live requests drawn for a candidate's shadow answer, by what became of them",
            ("model", "outcome"),
            registry=registry,
        )

    def follow(self, state: RoutingState) -> None:
        """Take note of a model's new routing state."""
        if not state.shadow:
            self._states.pop(state.model, None)
            return
        if state.model not in self._states:
            for outcome in OUTCOMES:
                self._requests.labels(state.model, outcome)
        self._states[state.model] = state

    def offer(self, call: Call, event: bytes) -> None:
        """Mirror a finished request, of which `event` is the record, if it is drawn."""
        state = self._states.get(call.choice.model)
        if state is None or random() * WEIGHT_SCALE >= state.shadow:
            return
        shown = call.last.outcome is Outcome.ok and call.last.arm == Arm.stable.value
        if not shown or call.request.purpose != Purpose.live.value or self._is_stale(state):
            return
        fields = call.request.fields
        if call.request.endpoint == "completions":
            self._count(state.model, NOT_SUITED)
        elif max(len(event), len(fields)) > MAX_BYTES:
            self._count(state.model, TOO_LARGE)
        elif len(self._waiting) >= MAX_WAITING:
            self._count(state.model, QUEUE_FULL)
        else:
            self._waiting.append(
                Mirrored(state.model, state.candidate, state.rollout, event, fields)
            )
            self._grown.set()

    async def run(self) -> None:
        """Send what was drawn, until cancelled."""
        while True:
            await self._grown.wait()
            self._grown.clear()
            while self._waiting:
                await self._send([self._waiting.popleft() for _ in range(self._next_batch())])

    def _next_batch(self) -> int:
        return min(BATCH, len(self._waiting))

    async def _send(self, drawn: list[Mirrored]) -> None:
        records: list[NewRecord] = []
        models: list[str] = []
        for one in drawn:
            request = await self._request(one)
            if request is None:
                self._count(one.model, NOT_SUITED)
                continue
            records.append(generation_record(request, source=SOURCE, time=self._clock.now()))
            models.append(one.model)
        outcome = SENT
        try:
            if records:
                await self._log.append_many(records)
        except LogUnavailable as error:
            log.warning(Unavailable.kafka, during="mirroring", error=str(error))
            outcome = LOG_AWAY
        for model in models:
            self._count(model, outcome)

    async def _request(self, one: Mirrored) -> GenerationRequested | None:
        """The request for the batch worker; None where it cannot be asked again as it was."""
        event: dict[str, Any] = orjson.loads(one.event)
        if any(event.get(name) for name in UNSUITED) or withheld(event["redactions"]):
            return None
        answer = event.get("answer") or {"content": event["completion"]}
        fields = orjson.loads(one.fields)
        try:
            sampling = sampling_of(fields, with_tools=bool(event.get("tools")))
            asked = orjson.dumps(sampling).decode()
            kept = await redacted(self._redact, partial(clean_json, asked))
            if orjson.loads(kept) != sampling:
                # Such as a stop sequence with an address: redacted, it would ask for something else.
                return None
            return GenerationRequested(
                request_id=f"{one.rollout}/{event['trace_id']}",
                batch_id=one.rollout,
                purpose="shadow",
                version=one.candidate,
                messages=event["messages"],
                tools=event.get("tools", ()),
                sampling=sampling,
                expires_at=self._clock.now() + timedelta(seconds=EXPIRES_S),
                trace_id=event["trace_id"],
                tenant=event["tenant"],
                subjects=tuple(subjects_in(event)),
                shown=ShownAnswer(
                    completion=answer["content"],
                    tool_calls=tuple(call["name"] for call in answer.get("tool_calls", ())),
                    latency_ms=event["attempts"][-1]["duration_ms"],
                ),
            )
        except (ValidationError, TypeError, KeyError):
            return None

    def _is_stale(self, state: RoutingState) -> bool:
        return (self._clock.now() - state.at).total_seconds() > self._stale_after_s

    def _count(self, model: str, outcome: str) -> None:
        self._requests.labels(model, outcome).inc()


def sampling_of(fields: Mapping[str, Any], *, with_tools: bool) -> dict[str, Any]:
    """What a client asked for beside its conversation, in the chat API's form.

    A choice of a tool goes along where tools do: an engine refuses it alone, and the refusal would
    be the candidate's failure. The Responses API names the chosen tool beside the type.

    Args:
        fields: What went to the engine.
        with_tools: Whether the shadow request has tools.

    Raises:
        KeyError: a tool is chosen that the chat API cannot name, or a field may hold personal data.

    """
    for name in UNREDACTED:
        if fields.get(name):
            raise KeyError(name)
    named = {RESPONSES_NAMES.get(name, name): value for name, value in fields.items()}
    reasoning = named.get("reasoning")
    if isinstance(reasoning, dict):
        named["reasoning_effort"] = reasoning.get("effort")
    found = {
        name: named[name]
        for name in named.keys() & ENGINE_FIELDS["chat"] - NOT_SHADOWED
        if named[name] is not None
    }
    choice = found.get("tool_choice")
    if not with_tools:
        found.pop("tool_choice", None)
        found.pop("parallel_tool_calls", None)
    elif isinstance(choice, dict) and "function" not in choice:
        if choice["type"] != "function":
            raise KeyError(choice["type"])
        found["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}}
    return found
