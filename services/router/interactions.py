"""The event that every request leaves (design invariant 5).

It is built as plain JSON, for speed; a contract test reads it back with the event's model.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import orjson
import structlog

from services.router.call import Call, recorded_arm
from services.router.fields import Endpoint
from services.router.media import MediaUploads
from services.router.mirror import Mirror
from services.router.request import ChatRequest, is_plain
from services.router.response import EngineResponse
from services.router.spool import Spool
from services.router.streamed_answer import CUT_MARGIN
from shared.contracts.conversation import answer_text, stored_tools
from shared.contracts.events.base import MAX_ID, MAX_TEXT, Untrainable, utc
from shared.contracts.events.interactions import InteractionRecorded
from shared.contracts.topics import INTERACTIONS
from shared.kafka.envelope import Headers
from shared.kafka.log import NewRecord
from shared.pseudonyms import AS_THEY_COME, UserPseudonyms
from shared.redaction import Redacted, Redactor
from shared.redaction.turns import clean_json, clean_tool, clean_turn
from shared.voters import voter_label

log = structlog.get_logger(__name__)

MAX_EVENT_BYTES = 900_000
"""Under the brokers' limit of 1 MiB a batch."""
PROMPT_BUDGET = 160_000
"""Characters of conversation in an event; of longer ones the end is kept."""
MAX_TURNS = 1_000
MAX_TOOLS_BYTES = 200_000
TOOLS_CACHED = 32
"""Sets of tool definitions whose stored form is kept, each of at most MAX_TOOLS_BYTES."""
INSTRUCTIONS_CACHED = 128
"""System turns whose redacted form is kept, each of at most MAX_INSTRUCTIONS characters."""
MAX_INSTRUCTIONS = 32_000
MAX_ERROR = 500

_ENDPOINTS: dict[Endpoint, dict[str, str]] = {
    "chat": {"endpoint": "chat"},
    "completions": {"endpoint": "completions"},
    "responses": {"endpoint": "chat", "api": "responses"},
    "embeddings": {"endpoint": "chat", "api": "embeddings"},
    "messages": {"endpoint": "chat", "api": "messages"},
}
"""The event's fields; its `endpoint` is an enumeration that readers of old know two values of."""
_SOURCE = b"/ratchet/router"
_TYPE = InteractionRecorded.ce_type.encode()


class Interactions:
    """Writes events to the spool, from where they are shipped. A full spool only counts."""

    def __init__(
        self,
        spool: Spool,
        redactor: Redactor,
        mirror: Mirror | None = None,
        pseudonyms: UserPseudonyms = AS_THEY_COME,
        media: MediaUploads | None = None,
    ) -> None:
        self._spool = spool
        self._redactor = redactor
        self._mirror = mirror
        self._pseudonyms = pseudonyms
        self._media = media
        self.lost = 0

    def record(self, call: Call, duration_s: float) -> None:
        """Append the event of a finished request; it never stands in the answer's way."""
        value = self._kept(call, duration_s)
        if value is None:
            self.lost += 1
            return
        try:
            if self._mirror is not None:
                self._mirror.offer(call, value)
            if self._media is not None:
                self._media.offer(call, self._pseudonyms.of(call.tenant, call.request.user))
        except Exception:
            log.exception("interaction.not_offered", trace_id=call.request.trace_id)

    def _kept(self, call: Call, duration_s: float) -> bytes | None:
        """The event, once the spool has it."""
        time = utc(call.started_at)
        try:
            value = event_json(call, duration_s, time, self._redactor, self._pseudonyms)
            record = NewRecord(INTERACTIONS, call.request.trace_id, value, _headers(call, time))
            return value if self._spool.append(record) else None
        except Exception:
            log.exception("interaction.not_built", trace_id=call.request.trace_id)
            return None


def event_json(
    call: Call,
    duration_s: float,
    time: str,
    redactor: Redactor,
    pseudonyms: UserPseudonyms = AS_THEY_COME,
) -> bytes:
    """An InteractionRecorded as JSON, redacted and at most MAX_EVENT_BYTES long."""
    turns = call.request.turns()
    user_id = pseudonyms.of(call.tenant, call.request.user)
    budget = PROMPT_BUDGET
    while True:
        clean = Cleaner(redactor, budget)
        value = orjson.dumps(_event(call, duration_s, time, clean, turns, user_id))
        if len(value) <= MAX_EVENT_BYTES:
            return value
        budget //= 2


class Cleaner:
    """Redacts and cuts the texts of one event, and remembers what it did."""

    __slots__ = ("_redactor", "budget", "counts", "cut", "limit")

    def __init__(self, redactor: Redactor, budget: int) -> None:
        self._redactor = redactor
        self.budget = budget
        """Characters of conversation in the event."""
        self.limit = min(MAX_TEXT, budget)
        """Characters of one text."""
        self.counts: dict[str, int] = {}
        self.cut = False
        """A text of the conversation was longer than its limit."""

    def __call__(self, text: str) -> str:
        """A text of the conversation."""
        if len(text) > self.limit:
            self.cut = True
            return self.text(text, self.limit)
        redacted = self._redactor.redact(text)
        if redacted.counts:
            self._count(redacted.counts)
        return redacted.text[: self.limit]

    def text(self, text: str, limit: int) -> str:
        """The redacted text, of at most `limit` characters."""
        redacted = self._redactor.redact(text if len(text) <= limit else text[: limit + CUT_MARGIN])
        if redacted.counts:
            self._count(redacted.counts)
        return redacted.text[:limit]

    def plain(self, turn: dict[str, Any]) -> dict[str, Any]:
        """A turn that is role and text alone."""
        role, text = turn["role"], turn["content"]
        if role != "system" or len(text) > self.limit or len(text) > MAX_INSTRUCTIONS:
            return {"role": role, "content": self(text)}
        redacted = _instructions(text, self._redactor)
        if redacted.counts:
            self._count(redacted.counts)
        return {"role": role, "content": redacted.text[: self.limit]}

    def turn(self, turn: dict[str, Any]) -> dict[str, Any]:
        """A turn in the stored form."""
        if is_plain(turn):
            return self.plain(turn)
        cleaned = clean_turn(turn, self)
        if "name" in cleaned:
            cleaned["name"] = cleaned["name"][:MAX_ID]
        for call in cleaned.get("tool_calls", ()):
            if len(call["arguments"]) > self.limit:
                call["arguments"], call["unparsed"] = call["arguments"][: self.limit], True
                self.cut = True
        return cleaned

    def tools(self, tools: list[Any]) -> orjson.Fragment | None:
        """Definitions of tools as JSON; none of them where they are too large together."""
        raw = orjson.dumps(tools)
        if len(raw) <= MAX_TOOLS_BYTES:
            stored, size, counts = _stored_tools(raw, self._redactor)
            if size <= self.limit:
                self._count(counts)
                return stored
        self.cut = True
        return None

    def _count(self, counts: Mapping[str, int]) -> None:
        for kind, count in counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count


@lru_cache(maxsize=INSTRUCTIONS_CACHED)
def _instructions(text: str, redactor: Redactor) -> Redacted:
    """A system turn's text, redacted. A product sends the same with each request."""
    return redactor.redact(text)


@lru_cache(maxsize=TOOLS_CACHED)
def _stored_tools(
    raw: bytes, redactor: Redactor
) -> tuple[orjson.Fragment | None, int, Mapping[str, int]]:
    """Tools as the event has them, their characters, and what was redacted.

    A product sends the same definitions with each request; to redact them takes a millisecond.
    """
    clean = Cleaner(redactor, PROMPT_BUDGET)
    tools = [clean_tool(tool, clean) for tool in stored_tools(orjson.loads(raw))]
    size = sum(len(tool["parameters"]) + len(tool.get("description", "")) for tool in tools)
    return orjson.Fragment(orjson.dumps(tools)) if tools else None, size, clean.counts


def _event(
    call: Call,
    duration_s: float,
    time: str,
    clean: Cleaner,
    turns: list[dict[str, Any]],
    user_id: str,
) -> dict[str, Any]:
    request, answer, last = call.request, call.answer, call.last
    context = request.context
    if context:
        context = _clean_context(context, clean)
    size = request.plain_size
    fits = size is not None and size < clean.budget and len(turns) <= MAX_TURNS
    kept = turns if fits else _last(turns, clean.budget)
    clean.cut = kept is not turns
    cleaned = clean.turn if size is None else clean.plain
    return {
        "trace_id": request.trace_id,
        "tenant": call.tenant,
        "model": call.choice.model,
        "version": last.version,
        "arm": recorded_arm(last.arm),
        "rollout": call.choice.rollout,
        "purpose": request.purpose,
        "context": context,
        **_ENDPOINTS[request.endpoint],
        "stream": request.stream,
        "messages": [cleaned(turn) for turn in kept],
        **_answer(answer, clean),
        **_beyond_text(call, turns, clean),
        "finish_reason": answer.finish_reason,
        "engine_id": answer.engine_id,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "outcome": last.outcome.value,
        "attempts": [
            attempt.row(clean.text(attempt.error, MAX_ERROR) if attempt.error else "")
            for attempt in call.attempts
        ],
        "started_at": time,
        "duration_ms": round(duration_s * 1000, 3),
        "ttft_ms": _milliseconds(last.first_token_at - last.started)
        if last.first_token_at
        else None,
        "max_gap_ms": _milliseconds(call.max_gap_s),
        "overhead_ms": round(call.overhead_s * 1000, 3),
        "redactions": clean.counts,
        "user_id": user_id,
    }


def _answer(answer: EngineResponse, clean: Cleaner) -> dict[str, Any]:
    """The answer's text, and the answer as a turn where it is more than text."""
    turn = answer.turn()
    if turn is None:
        return {"completion": clean(answer.completion)}
    turn = clean.turn(turn)
    return {"completion": answer_text(turn)[: clean.limit], "answer": turn}


def _beyond_text(call: Call, turns: list[dict[str, Any]], clean: Cleaner) -> dict[str, Any]:
    """What only some events have: tools, response format, and why they are untrainable."""
    request, answer = call.request, call.answer
    found: dict[str, Any] = {}
    reasons: list[str] = []
    if not request.asks_text_alone:
        found = _asked_for(request, clean)
        reasons = request.untrainable(turns)
    applied = call.last.applied
    if applied is not None:
        found["applied_settings"] = applied.model_dump(mode="json")
    if call.choice.rollout:
        found["api_key"] = voter_label(call.key_id)
    if call.filtered is not None:
        found["output_filter"] = call.filtered.row()
        reasons += call.filtered.untrainable
    if call.choice.holdout:
        found["holdout"] = call.choice.holdout
        reasons.append(Untrainable.holdout.value)
    if applied is not None and "tools" in applied.fields and answer.more.get("tool_calls"):
        reasons.append(Untrainable.version_tools.value)
    if "audio" in answer.more and Untrainable.media not in reasons:
        reasons.append(Untrainable.media.value)
    if clean.cut:
        reasons.append(Untrainable.too_large.value)
    if reasons:
        found["untrainable"] = reasons
    return found


def _asked_for(request: ChatRequest, clean: Cleaner) -> dict[str, Any]:
    """Tools and response format of a request that has them."""
    found: dict[str, Any] = {}
    tools = clean.tools(request.tools) if request.tools else None
    if tools is not None:
        found["tools"] = tools
    if form := request.response_format():
        form = clean_json(form, clean)
        if len(form) <= clean.limit:
            found["response_format"] = form
    return found


def _clean_context(context: dict[str, Any], clean: Cleaner) -> dict[str, Any]:
    """Session ids stay as they are, as they are what joins a session's requests."""
    cleaned: dict[str, Any] = {}
    for name, value in context.items():
        if name == "labels":
            cleaned[name] = {
                label: clean.text(text, len(text) + MAX_ID) for label, text in value.items()
            }
        elif name == "session_id":
            cleaned[name] = value
        else:
            cleaned[name] = clean.text(value, MAX_ID)
    return cleaned


def _last(turns: list[dict[str, Any]], budget: int) -> list[dict[str, Any]]:
    """The last turns that fit a budget of characters; of the first of them the end of its text."""
    kept: list[dict[str, Any]] = []
    left = budget
    for turn in reversed(turns):
        if left <= 0 or len(kept) == MAX_TURNS:
            return kept[::-1]
        size = len(turn["content"]) if is_plain(turn) else _size(turn)
        if size > left:
            kept.append({"role": turn["role"], "content": turn["content"][-left:]})
            return kept[::-1]
        kept.append(turn)
        left -= size
    return turns


def _size(turn: dict[str, Any]) -> int:
    """Characters of a turn that is more than text."""
    texts = ("content", "reasoning", "refusal")
    size = sum(len(turn.get(name, "")) for name in texts)
    size += sum(len(part.get("text", "")) + MAX_ID for part in turn.get("parts", ()))
    return size + sum(len(call["arguments"]) + MAX_ID for call in turn.get("tool_calls", ()))


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _headers(call: Call, time: str) -> Headers:
    """What `shared.kafka.envelope.encode` makes, without formatting the time a second time."""
    return (
        ("ce_specversion", b"1.0"),
        ("ce_id", call.request.trace_id.encode()),
        ("ce_source", _SOURCE),
        ("ce_type", _TYPE),
        ("ce_time", time.encode()),
        ("content-type", b"application/json"),
        ("traceparent", call.traceparent.encode()),
    )
