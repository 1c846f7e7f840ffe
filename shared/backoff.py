"""Exponential back-off between tries."""

from __future__ import annotations


class Backoff:
    """Doubles a pause from `first_s` up to `max_s` seconds; `reset` after a success."""

    __slots__ = ("_first_s", "_max_s", "_next_s")

    def __init__(self, first_s: float, max_s: float) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._next_s = first_s

    def next_s(self) -> float:
        """Seconds to wait before the next try; the one after waits twice as long."""
        pause_s = self._next_s
        self._next_s = min(pause_s * 2, self._max_s)
        return pause_s

    def reset(self) -> None:
        """Start again at the first pause."""
        self._next_s = self._first_s
