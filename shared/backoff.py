"""Exponential back-off between tries."""

from __future__ import annotations

PASSING_REFUSALS = frozenset((408, 425, 429))
"""HTTP statuses of refusals that a later try may change; other 4xx are for good."""
MAX_DOUBLINGS = 32
"""Bounds the power of 2, so that no count of failures overflows a float."""


def pause_s(failures: int, first_s: float, max_s: float) -> float:
    """Seconds to wait before the next try: `first_s`, doubled per earlier failure, up to `max_s`."""
    return min(first_s * 2 ** min(failures, MAX_DOUBLINGS), max_s)


class Backoff:
    """Doubles a pause from `first_s` up to `max_s` seconds; `reset` after a success."""

    __slots__ = ("_failures", "_first_s", "_max_s")

    def __init__(self, first_s: float, max_s: float) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._failures = 0

    def next_s(self) -> float:
        """Seconds to wait before the next try; the one after waits twice as long."""
        seconds = pause_s(self._failures, self._first_s, self._max_s)
        self._failures += 1
        return seconds

    def reset(self) -> None:
        """Start again at the first pause."""
        self._failures = 0
