"""Trace ids: each request has one of its own, by which its event and its feedback are found."""

from __future__ import annotations

import os
import random

from shared.observability.tracing import parse_traceparent

ID_BYTES = 16
POOL_IDS = 256
"""Ids drawn from the system at once: a system call for each would cost more than all else here."""


class TraceIds:
    """Hands out trace ids that name one request each, whichever router it came to.

    A client's own trace id cannot be one: a product asks several times within one trace, and two
    routers would both take it.
    """

    def __init__(self) -> None:
        self._pool = ""
        self._at = 0
        self._spans = random.Random(os.urandom(ID_BYTES))

    def take(self) -> str:
        """A new trace id: 32 random hex digits."""
        if self._at >= len(self._pool):
            self._pool = os.urandom(ID_BYTES * POOL_IDS).hex()
            self._at = 0
        start = self._at
        self._at = end = start + 2 * ID_BYTES
        return self._pool[start:end]

    def traceparent(self, trace_id: str, given: bytes | None) -> str:
        """A sampled `traceparent` with a new span: of the client's trace, else of `trace_id`.

        `given` is the client's own header. The engine is sent the result and the interaction
        event carries it, so that a client's trace goes on behind the router.
        """
        offered = parse_traceparent(given.decode("latin-1")) if given else None
        return f"00-{offered or trace_id}-{self._spans.getrandbits(64) or 1:016x}-01"
