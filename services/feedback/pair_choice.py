"""Choice of the pair to vote on: of several answers of both sides, the two of which a vote tells most."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from itertools import product

import structlog

from shared.backoff import Backoff
from shared.clock import Clock
from shared.contracts.events.base import Message, prompt_text
from shared.http.reward_scores import NotScored, RewardScores
from shared.information import AnsweredTwice, information
from shared.observability.events import Unavailable

log = structlog.get_logger(__name__)

MAX_CANDIDATES = 4
"""Answers of each side at most; pairs grow by the square."""
SCORED_WITHIN_S = 10.0
"""A rater may be waiting for the comparison."""
RETRY_S, MAX_RETRY_S = 60.0, 3600.0
"""Pauses after no scores came; meanwhile each side answers once, as more would be for nothing."""


class PairChoice:
    """Chooses pairs of answers by a reward model; without its scores it chooses none."""

    def __init__(self, scores: RewardScores, clock: Clock, *, candidates: int) -> None:
        """`candidates`: answers of each side that a pair is chosen from, up to MAX_CANDIDATES."""
        self._scores = scores
        self._clock = clock
        self._candidates = candidates
        self._backoff = Backoff(RETRY_S, MAX_RETRY_S)
        self._paused_until = -math.inf

    @classmethod
    def of(cls, scores: RewardScores, clock: Clock, candidates: int) -> PairChoice | None:
        """The choice among so many answers of each side; None among one."""
        return cls(scores, clock, candidates=candidates) if candidates > 1 else None

    @property
    def candidates(self) -> int:
        """How many answers of each side are wanted now: 1 for a while after no scores came."""
        return self._candidates if self._clock.monotonic() >= self._paused_until else 1

    async def most_informative(
        self, model: str, turns: tuple[Message, ...], left: Sequence[str], right: Sequence[str]
    ) -> tuple[int, int] | None:
        """Places of the left and the right answer of which a vote tells most (`information`).

        None where there is one pair only, no scores came, or every pair tells nothing.
        """
        if len(left) * len(right) < 2 or self.candidates < 2:
            return None
        asked = [(turns, text) for text in (*left, *right)]
        try:
            async with asyncio.timeout(SCORED_WITHIN_S):
                found = await self._scores.with_uncertainty(model, asked)
        except (NotScored, TimeoutError) as error:
            self._pause(str(error) or f"no scores within {SCORED_WITHIN_S:g} s")
            return None
        self._backoff.reset()
        prompt = prompt_text(turns)
        pairs = list(product(range(len(left)), range(len(right))))

        def told() -> list[float]:
            return [
                information(
                    AnsweredTwice(
                        prompt, (left[one], right[other]), (found[one], found[len(left) + other])
                    )
                )
                for one, other in pairs
            ]

        most, pair = max(zip(await asyncio.to_thread(told), pairs, strict=True))
        return pair if most > 0 else None

    def _pause(self, why: str) -> None:
        now = self._clock.monotonic()
        if now >= self._paused_until:  # those who asked meanwhile failed by the same cause
            wait_s = self._backoff.next_s()
            self._paused_until = now + wait_s
            log.info(Unavailable.scorer, during="pair_choice", error=why, retry_in_s=wait_s)
