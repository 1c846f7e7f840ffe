"""The event that every request leaves (design invariant 5).

It is built as plain JSON, for speed; a contract test reads it back with the event's model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import orjson
import structlog

from services.router.call import Call, recorded_arm
from services.router.event_cleaner import PROMPT_BUDGET, Cleaner
from services.router.media import MediaUploads
from services.router.mirror import Mirror
from services.router.request_part import RequestPart, request_part
from services.router.response import EngineResponse
from services.router.spool import Spool
from services.router.unchecked_calls import UncheckedCall, UncheckedCalls
from shared.contracts.conversation import answer_text
from shared.contracts.events.base import Untrainable, utc
from shared.contracts.events.interactions import InteractionRecorded
from shared.contracts.topics import INTERACTIONS
from shared.kafka.envelope import Headers
from shared.kafka.log import NewRecord
from shared.pseudonyms import AS_THEY_COME, UserPseudonyms
from shared.redaction import Redactor, TextDetector
from shared.redaction.detection import Review, Unchecked, reviewed, withheld

log = structlog.get_logger(__name__)

MAX_EVENT_BYTES = 900_000
"""Under the brokers' limit of 1 MiB a batch."""
MAX_ERROR = 500
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

    def prepare(self, call: Call) -> None:
        """Build what the event has of the request, while an engine works on its answer.

        A detector has yet to be asked about all texts together.
        """
        if self._unchecked is not None or call.recorded:
            return
        # What cannot be built is built again by `record`, which says why.
        with contextlib.suppress(Exception):
            time, clean = utc(call.started_at), Cleaner(self._redactor, PROMPT_BUDGET)
            call.part = _request_part(call, time, self._pseudonyms, clean)
            call.event_headers = _headers(call, time)

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
    part, call.part = call.part, None
    budget = PROMPT_BUDGET
    while True:
        if part is None:
            part = _request_part(call, time, pseudonyms, Cleaner(redactor, budget, review))
        value = part.opened + b"," + orjson.dumps(_answer_part(call, duration_s, part))[1:]
        if len(value) <= MAX_EVENT_BYTES:
            return value
        part = None
        budget //= 2


def _request_part(call: Call, time: str, pseudonyms: UserPseudonyms, clean: Cleaner) -> RequestPart:
    return request_part(
        call.request,
        call.choice,
        clean,
        tenant=call.tenant,
        key_id=call.key_id,
        user_id=pseudonyms.of(call.tenant, call.request.user),
        time=time,
    )


def _answer_part(call: Call, duration_s: float, part: RequestPart) -> dict[str, Any]:
    """What an event has of the answer, and of how it came about."""
    answer, last, clean = call.answer, call.last, part.clean
    return {
        "version": last.version,
        "arm": recorded_arm(last.arm),
        **_answer(answer, clean),
        **_beyond_text(call, part),
        "finish_reason": answer.finish_reason,
        "engine_id": answer.engine_id,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "outcome": last.outcome.value,
        "attempts": [
            attempt.row(clean.text(attempt.error, MAX_ERROR) if attempt.error else "")
            for attempt in call.attempts
        ],
        "duration_ms": round(duration_s * 1000, 3),
        "ttft_ms": _milliseconds(last.first_token_at - last.started)
        if last.first_token_at
        else None,
        "max_gap_ms": _milliseconds(call.max_gap_s),
        "overhead_ms": round(call.overhead_s * 1000, 3),
        "redactions": clean.counts,
    }


def _answer(answer: EngineResponse, clean: Cleaner) -> dict[str, Any]:
    """The answer's text, and the answer as a turn where it is more than text."""
    turn = answer.turn()
    if turn is None:
        return {"completion": clean(answer.completion)}
    turn = clean.turn(turn)
    return {"completion": answer_text(turn)[: clean.limit], "answer": turn}


def _beyond_text(call: Call, part: RequestPart) -> dict[str, Any]:
    """What only some events have: applied settings, output filter, and why they are untrainable."""
    found: dict[str, Any] = {}
    applied = call.last.applied
    if applied is not None:
        found["applied_settings"] = applied.model_dump(mode="json")
    if call.filtered is not None:
        found["output_filter"] = call.filtered.row()
    reasons = part.untrainable + _untrainable(call, part)
    if reasons:
        found["untrainable"] = reasons
    return found


def _untrainable(call: Call, part: RequestPart) -> list[str]:
    """Why nothing is trained on a request, beyond what it asks for."""
    answer, applied = call.answer, call.last.applied
    reasons: list[str] = []
    if call.filtered is not None:
        reasons += call.filtered.untrainable
    if call.choice.holdout:
        reasons.append(Untrainable.holdout.value)
    if applied is not None and "tools" in applied.fields and answer.more.get("tool_calls"):
        reasons.append(Untrainable.version_tools.value)
    if "audio" in answer.more and Untrainable.media not in part.untrainable:
        reasons.append(Untrainable.media.value)
    if part.clean.cut:
        reasons.append(Untrainable.too_large.value)
    if withheld(part.clean.counts):
        reasons.append(Untrainable.unchecked.value)
    return reasons


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _record(call: Call, value: bytes) -> NewRecord:
    headers = call.event_headers or _headers(call, utc(call.started_at))
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
