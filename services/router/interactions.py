"""The event that every request leaves (design invariant 5).

It is built as plain JSON, for speed; a contract test reads it back with the event's model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import orjson
import structlog

from services.router.call import Call, recorded_arm
from services.router.event_cleaner import PROMPT_BUDGET, Cleaner
from services.router.fields import Endpoint
from services.router.media import MediaUploads
from services.router.mirror import Mirror
from services.router.request import ChatRequest, is_plain
from services.router.response import EngineResponse
from services.router.spool import Spool
from services.router.unchecked_calls import UncheckedCall, UncheckedCalls
from shared.contracts.conversation import answer_text
from shared.contracts.events.base import MAX_ID, Untrainable, utc
from shared.contracts.events.interactions import InteractionRecorded
from shared.contracts.topics import INTERACTIONS
from shared.kafka.envelope import Headers
from shared.kafka.log import NewRecord
from shared.pseudonyms import AS_THEY_COME, UserPseudonyms
from shared.redaction import Redactor, TextDetector
from shared.redaction.detection import Review, Unchecked, reviewed, withheld
from shared.redaction.turns import clean_json
from shared.voters import voter_label

log = structlog.get_logger(__name__)

MAX_EVENT_BYTES = 900_000
"""Under the brokers' limit of 1 MiB a batch."""
MAX_TURNS = 1_000
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
        unchecked: UncheckedCalls | None = None,
    ) -> None:
        """`unchecked` is where events wait for a detector; none: the rules alone clean them."""
        self._spool = spool
        self._redactor = redactor
        self._mirror = mirror
        self._pseudonyms = pseudonyms
        self._media = media
        self._unchecked = unchecked
        self.lost = 0

    def record(self, call: Call, duration_s: float) -> None:
        """Append the event of a finished request; it never stands in the answer's way.

        With a detector it waits in memory until its texts are checked (`run`), so that no unchecked
        text is on the disk; a journal has it with its texts withheld. Where too many wait, it is
        appended so.
        """
        unchecked = self._unchecked
        if unchecked is None:
            self._append(call, self._built(call, duration_s))
        elif not unchecked.has_room(call):
            self._append_withheld(call, duration_s, unchecked.detector.unchecked)
        elif (value := self._withheld(call, duration_s, lambda: None)) is None:
            self.lost += 1
        else:
            unchecked.put(call, duration_s, _record(call, value))

    async def run(self) -> None:
        """Have what waits checked and append it, until cancelled; without a detector nothing waits."""
        if self._unchecked is not None:
            await self._unchecked.run(partial(self._check, detector=self._unchecked.detector))

    async def drain(self, timeout_s: float) -> None:
        """Wait until all is appended, for a bounded time; the rest goes with its texts withheld."""
        if self._unchecked is not None:
            left = await self._unchecked.drain(timeout_s)
            for one in left:
                self._append_withheld(one.call, one.duration_s, self._unchecked.detector.unchecked)
            self._unchecked.settle(left)

    async def _check(self, waiting: Sequence[UncheckedCall], detector: TextDetector) -> None:
        """Append events whose texts a detector is asked about at once."""
        try:
            built = await reviewed(
                detector,
                Review(self._redactor.text),
                lambda review: [self._built(one.call, one.duration_s, review) for one in waiting],
            )
        except BaseException as error:
            for one in waiting:
                self._append_withheld(one.call, one.duration_s, detector.unchecked)
            if not isinstance(error, Exception):
                raise
            log.exception("interaction.not_checked", events=len(waiting))
            return
        for one, value in zip(waiting, built, strict=True):
            self._append(one.call, value)

    def _append_withheld(self, call: Call, duration_s: float, unchecked: Unchecked) -> None:
        self._append(call, self._withheld(call, duration_s, unchecked))

    def _withheld(self, call: Call, duration_s: float, unchecked: Unchecked) -> bytes | None:
        """The event without asking the detector; `unchecked` says what takes the place of its texts."""
        review = Review(self._redactor.text)
        review.withhold(unchecked)
        return self._built(call, duration_s, review)

    def _built(self, call: Call, duration_s: float, review: Review | None = None) -> bytes | None:
        """The event; None where it cannot be built."""
        try:
            return event_json(
                call, duration_s, utc(call.started_at), self._redactor, self._pseudonyms, review
            )
        except Exception:
            log.exception("interaction.not_built", trace_id=call.request.trace_id)
            return None

    def _append(self, call: Call, value: bytes | None) -> None:
        """Append an event to the spool, and offer the request to mirror and media store."""
        if value is None or not self._kept(call, value):
            self.lost += 1
            return
        try:
            if self._mirror is not None:
                self._mirror.offer(call, value)
            if self._media is not None:
                self._media.offer(call, self._pseudonyms.of(call.tenant, call.request.user))
        except Exception:
            log.exception("interaction.not_offered", trace_id=call.request.trace_id)

    def _kept(self, call: Call, value: bytes) -> bool:
        """Whether the spool has the event."""
        try:
            return self._spool.append(_record(call, value))
        except Exception:
            log.exception("interaction.not_appended", trace_id=call.request.trace_id)
            return False


def event_json(
    call: Call,
    duration_s: float,
    time: str,
    redactor: Redactor,
    pseudonyms: UserPseudonyms = AS_THEY_COME,
    review: Review | None = None,
) -> bytes:
    """An InteractionRecorded as JSON, redacted and at most MAX_EVENT_BYTES long.

    `review` knows what a detector found, where one is asked beside the redactor's rules.
    """
    turns = call.request.turns()
    user_id = pseudonyms.of(call.tenant, call.request.user)
    budget = PROMPT_BUDGET
    while True:
        clean = Cleaner(redactor, budget, review)
        value = orjson.dumps(_event(call, duration_s, time, clean, turns, user_id))
        if len(value) <= MAX_EVENT_BYTES:
            return value
        budget //= 2


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
    request = call.request
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
    reasons += _untrainable(call, clean)
    if call.filtered is not None:
        found["output_filter"] = call.filtered.row()
    if call.choice.holdout:
        found["holdout"] = call.choice.holdout
    if reasons:
        found["untrainable"] = reasons
    return found


def _untrainable(call: Call, clean: Cleaner) -> list[str]:
    """Why nothing is trained on a request, beyond what it asks for."""
    answer, applied = call.answer, call.last.applied
    reasons: list[str] = []
    if call.filtered is not None:
        reasons += call.filtered.untrainable
    if call.choice.holdout:
        reasons.append(Untrainable.holdout.value)
    if applied is not None and "tools" in applied.fields and answer.more.get("tool_calls"):
        reasons.append(Untrainable.version_tools.value)
    if "audio" in answer.more and Untrainable.media not in reasons:
        reasons.append(Untrainable.media.value)
    if clean.cut:
        reasons.append(Untrainable.too_large.value)
    if withheld(clean.counts):
        reasons.append(Untrainable.unchecked.value)
    return reasons


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
            cleaned[name] = clean.identifier(value)
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


def _record(call: Call, value: bytes) -> NewRecord:
    headers = _headers(call, utc(call.started_at))
    return NewRecord(INTERACTIONS, call.request.trace_id, value, headers)


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
