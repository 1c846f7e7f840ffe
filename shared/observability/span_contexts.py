"""Contexts of new spans: of requests, in the client's trace or in their own, and of parts of these."""

from __future__ import annotations

import os
import random

from shared.observability.spans import Spans
from shared.observability.tracing import is_sampled, parse_traceparent


class SpanContexts:
    """Hands out the `traceparent` of each request that begins."""

    def __init__(self, spans: Spans) -> None:
        self._spans = spans
        # Seeded once: a system call for each id would cost more than the rest.
        self._ids = random.Random(os.urandom(16))

    def begin(self, trace_id: str, given: str = "") -> str:
        """A `traceparent` with a new span id: of the trace that `given` names, else of `trace_id`.

        `given` is a client's header, valid or not; `trace_id` has 32 hex digits. Sampled is what the
        export samples; without an export, what the client says.
        """
        offered = parse_traceparent(given) if given else None
        if self._spans.enabled:
            sampled = self._spans.sampled(offered or trace_id, given if offered else "")
        else:
            sampled = offered is not None and is_sampled(given)
        return f"00-{offered or trace_id}-{self._ids.getrandbits(64) or 1:016x}-0{sampled:d}"

    def child(self, parent: str) -> str:
        """A `traceparent` with a new span id in the trace of `parent`, a valid one, and its flags."""
        return f"{parent[:36]}{self._ids.getrandbits(64) or 1:016x}{parent[52:]}"
