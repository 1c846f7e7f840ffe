"""Behaviour counts: complete answers wait until a few are there, and are classified together."""

from __future__ import annotations

from collections.abc import Callable

from services.router.behaviour import LENGTH_SCALE, AnswerBehaviour, behaviour_of
from services.router.response import EngineResponse

AT_ONCE = 16
"""Answers that are classified one after the other: some 0.2 ms, at a third of what each costs among
other work, whose code takes their place in the processor's caches."""

Count = Callable[[AnswerBehaviour], None]
"""Counts what one answer did where it belongs."""


class BehaviourCounts:
    """Answers whose behaviour is not counted yet, fewer than AT_ONCE. A scrape counts them first."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[tuple[Count, EngineResponse, str]] = []

    def add(self, count: Count, answer: EngineResponse, asked: str) -> None:
        """Have a complete answer counted; of long ones, and of those with tool calls, none waits."""
        self._waiting.append((count, answer, asked))
        waits = len(answer.completion) <= LENGTH_SCALE and not answer.more
        if not waits or len(self._waiting) == AT_ONCE:
            self.settle()

    def settle(self) -> None:
        """Count all that waits."""
        waiting, self._waiting = self._waiting, []
        for count, answer, asked in waiting:
            count(behaviour_of(answer, asked))
