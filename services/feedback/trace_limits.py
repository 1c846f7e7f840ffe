"""Trace limits: refuse feedback before its 202 that the aggregator could not keep.

The aggregator keeps MAX_FEEDBACKS feedbacks and MAX_TRACE_BYTES of one trace, and dead-letters what
is more. Best effort: the read model is seconds behind, and replicas learn of each other's feedback
through it alone.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Protocol

import structlog

from services.feedback.errors import EventTooLarge, FeedbackError, Invalid, invalid
from services.feedback.read_model.queries import TraceLoad
from shared.contracts.events.feedback import MAX_FEEDBACKS, MAX_TRACE_BYTES
from shared.errors import FieldError

log = structlog.get_logger(__name__)

RECENT_FEEDBACKS = 20_000
"""Feedbacks that this replica remembers having accepted, of the traces touched last."""
LARGE_BYTES = 64_000
"""An event from here on is compared with what its trace holds, loaded or not."""
MAX_LOADED = 10_000
REFRESH_S = 1.0

Place = tuple[str, str]
"""Tenant and trace_id."""


class TraceLoads(Protocol):
    """What the read model knows of traces."""

    async def trace_load(self, tenant: str, trace_id: str) -> TraceLoad:
        """What a trace holds by now."""
        ...

    async def loaded_traces(self, limit: int) -> frozenset[Place]:
        """Traces whose next feedback may be one too many."""
        ...


class TraceLimits:
    """Decides from what this replica accepted lately, and for loaded traces from the read model."""

    def __init__(self, loads: TraceLoads, *, max_recent: int = RECENT_FEEDBACKS) -> None:
        self._loads = loads
        self._max_recent = max_recent
        self._recent: OrderedDict[Place, dict[str, int]] = OrderedDict()
        self._count = 0
        self._loaded: frozenset[Place] = frozenset()

    async def check(self, tenant: str, trace_id: str, feedback_id: str, size: int) -> None:
        """Refuse an event of `size` bytes that its trace has no room for; else remember it.

        Raises:
            Invalid: the trace has as many feedbacks as are kept, and this would be another one.
            EventTooLarge: with it the trace would take more than is kept.

        """
        place = (tenant, trace_id)
        recent = self._recent.get(place, {})
        if len(recent) >= MAX_FEEDBACKS or size >= LARGE_BYTES or place in self._loaded:
            load = await self._load(tenant, trace_id)
            others = {name: taken for name, taken in recent.items() if name != feedback_id}
            known = load.feedback_ids | others.keys()
            if feedback_id not in known and len(known) >= MAX_FEEDBACKS:
                raise _full(trace_id)
            unseen = sum(taken for name, taken in others.items() if name not in load.feedback_ids)
            earlier = load.sizes.get(feedback_id, 0)
            if (held := load.bytes - earlier + unseen) + size > MAX_TRACE_BYTES:
                raise _too_much(trace_id, held, size)
        self._remember(place, feedback_id, size)

    async def follow(self) -> None:
        """Keep the list of loaded traces fresh until cancelled; without a read model it stays."""
        while True:
            try:
                self._loaded = await self._loads.loaded_traces(MAX_LOADED)
            except FeedbackError as error:
                log.debug("trace_limits.not_refreshed", error=error.detail)
            await asyncio.sleep(REFRESH_S)

    async def _load(self, tenant: str, trace_id: str) -> TraceLoad:
        """What the read model has; nothing where it cannot be read, as ingestion goes on without."""
        try:
            return await self._loads.trace_load(tenant, trace_id)
        except FeedbackError:
            return TraceLoad({}, 0)

    def _remember(self, place: Place, feedback_id: str, size: int) -> None:
        recent = self._recent.setdefault(place, {})
        self._recent.move_to_end(place)
        self._count += feedback_id not in recent
        recent[feedback_id] = size
        while self._count > self._max_recent:
            _, oldest = self._recent.popitem(last=False)
            self._count -= len(oldest)


def _full(trace_id: str) -> Invalid:
    rule = f"has {MAX_FEEDBACKS} feedbacks, and no more are kept of one trace"
    remedy = "edit one of them by its feedback_id, or send the trace_id of another answer"
    return invalid([FieldError("trace_id", f"{trace_id[:60]} {rule}", remedy)])


def _too_much(trace_id: str, held: int, size: int) -> EventTooLarge:
    return EventTooLarge(
        f"trace {trace_id[:60]} holds {held} bytes and this event takes {size}, where at most "
        f"{MAX_TRACE_BYTES} are kept of one trace; shorten it"
    )
