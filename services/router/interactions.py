"""The event that every request leaves (design invariant 5).

It is built as plain JSON, for speed; a contract test reads it back with the event's model.
"""

from __future__ import annotations

from typing import Any

import orjson
import structlog

from services.router.call import Call
from services.router.spool import Spool
from shared.contracts.events.base import MAX_ID, MAX_TEXT, utc
from shared.contracts.events.interactions import InteractionRecorded
from shared.contracts.topics import INTERACTIONS
from shared.kafka.envelope import Headers
from shared.kafka.log import NewRecord
from shared.redaction import Redactor

log = structlog.get_logger(__name__)

MAX_EVENT_BYTES = 900_000
"""Under the brokers' limit of 1 MiB a batch."""
PROMPT_BUDGET = 160_000
"""Characters of conversation in an event; of longer ones the end is kept."""
MAX_TURNS = 1_000
CUT_MARGIN = 1_000
"""Read beyond a cut, so that personal data across it is still recognised."""
MAX_ERROR = 500

_SOURCE = b"/ratchet/router"
_TYPE = InteractionRecorded.ce_type.encode()


class Interactions:
    """Writes events to the spool, from where they are shipped. A full spool only counts."""

    def __init__(self, spool: Spool, redactor: Redactor) -> None:
        self._spool = spool
        self._redactor = redactor
        self.lost = 0

    def record(self, call: Call, duration_s: float) -> None:
        """Append the event of a finished request; it never stands in the answer's way."""
        time = utc(call.started_at)
        try:
            kept = self._spool.append(
                NewRecord(
                    topic=INTERACTIONS,
                    key=call.request.trace_id,
                    value=event_json(call, duration_s, time, self._redactor),
                    headers=_headers(call, time),
                )
            )
        except Exception:
            log.exception("interaction.not_built", trace_id=call.request.trace_id)
            kept = False
        if not kept:
            self.lost += 1


def event_json(call: Call, duration_s: float, time: str, redactor: Redactor) -> bytes:
    """An InteractionRecorded as JSON, redacted and at most MAX_EVENT_BYTES long."""
    turns = call.request.turns()
    budget = PROMPT_BUDGET
    while True:
        value = orjson.dumps(_event(call, duration_s, time, redactor, _last(turns, budget), budget))
        if len(value) <= MAX_EVENT_BYTES:
            return value
        budget //= 2


def _event(
    call: Call,
    duration_s: float,
    time: str,
    redactor: Redactor,
    turns: list[tuple[str, str]],
    budget: int,
) -> dict[str, Any]:
    counts: dict[str, int] = {}

    def clean(text: str, limit: int) -> str:
        redacted = redactor.redact(text if len(text) <= limit else text[: limit + CUT_MARGIN])
        for kind, count in redacted.counts.items():
            counts[kind] = counts.get(kind, 0) + count
        return redacted.text[:limit]

    request, answer, last = call.request, call.answer, call.last
    limit = min(MAX_TEXT, budget)
    context = request.context
    if context:
        context = _clean_context(context, clean)
    return {
        "trace_id": request.trace_id,
        "tenant": call.tenant,
        "model": call.choice.model,
        "version": last.version,
        "arm": last.arm,
        "rollout": call.choice.rollout,
        "purpose": request.purpose,
        "user_id": request.user,
        "context": context,
        "endpoint": request.endpoint,
        "stream": request.stream,
        "messages": [{"role": role, "content": clean(text, limit)} for role, text in turns],
        "completion": clean(answer.completion, limit),
        "finish_reason": answer.finish_reason,
        "engine_id": answer.engine_id,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "outcome": last.outcome.value,
        "attempts": [
            attempt.row(clean(attempt.error, MAX_ERROR) if attempt.error else "")
            for attempt in call.attempts
        ],
        "started_at": time,
        "duration_ms": round(duration_s * 1000, 3),
        "ttft_ms": _milliseconds(last.first_token_at - last.started)
        if last.first_token_at
        else None,
        "max_gap_ms": _milliseconds(call.max_gap_s),
        "overhead_ms": round(call.overhead_s * 1000, 3),
        "redactions": counts,
    }


def _clean_context(context: dict[str, Any], clean: Any) -> dict[str, Any]:
    """Session ids stay as they are, as they are what joins a session's requests."""
    cleaned: dict[str, Any] = {}
    for name, value in context.items():
        if name == "labels":
            cleaned[name] = {
                label: clean(text, len(text) + MAX_ID) for label, text in value.items()
            }
        elif name == "session_id":
            cleaned[name] = value
        else:
            cleaned[name] = clean(value, MAX_ID)
    return cleaned


def _last(turns: list[tuple[str, str]], budget: int) -> list[tuple[str, str]]:
    """The last turns that fit a budget of characters; the first of them may lose its start."""
    if len(turns) > MAX_TURNS:
        turns = turns[-MAX_TURNS:]
    total = sum(len(text) for _, text in turns)
    if total <= budget:
        return turns
    kept: list[tuple[str, str]] = []
    left = budget
    for role, text in reversed(turns):
        if left <= 0:
            break
        kept.append((role, text[-left:]))
        left -= len(text)
    return kept[::-1]


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
