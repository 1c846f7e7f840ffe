"""Trace ids: a client's own the first time it is seen, else a new one."""

from __future__ import annotations

import os
import random
from collections import OrderedDict

from shared.observability.tracing import parse_traceparent

REMEMBERED = 65_536
"""Trace ids of clients that are remembered, so that none is used twice here."""
ID_BYTES = 16
POOL_IDS = 256
"""Ids drawn from the system at once: a system call for each would cost more than all else here."""


class TraceIds:
    """Hands out trace ids that name one request each, so that feedback finds it."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._limit = remembered
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._pool = ""
        self._at = 0
        self._spans = random.Random(os.urandom(ID_BYTES))

    def take(self, traceparent: bytes | None) -> str:
        """The trace id of a client's `traceparent` if it is new, else 32 random hex digits."""
        offered = parse_traceparent(traceparent.decode("latin-1")) if traceparent else None
        if offered is None or offered in self._seen:
            return self._new()
        self._seen[offered] = None
        if len(self._seen) > self._limit:
            self._seen.popitem(last=False)
        return offered

    def traceparent(self, trace_id: str) -> str:
        """A sampled `traceparent` of this trace with a new parent id."""
        return f"00-{trace_id}-{self._spans.getrandbits(64) or 1:016x}-01"

    def _new(self) -> str:
        if self._at >= len(self._pool):
            self._pool = os.urandom(ID_BYTES * POOL_IDS).hex()
            self._at = 0
        start = self._at
        self._at = end = start + 2 * ID_BYTES
        return self._pool[start:end]
