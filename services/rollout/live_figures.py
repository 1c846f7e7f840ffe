"""Live figures for the gain of versions: daily scores from `quality.v1`, votes from Prometheus."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

import structlog

from services.rollout.counters import CounterSeries
from services.rollout.daily_scores import DailyScores
from services.rollout.gains import ScoreSums, VoteCounts
from services.rollout.prometheus import EvidenceUnavailable
from shared.clock import Clock
from shared.observability.events import Unavailable

log = structlog.get_logger(__name__)

VOTES = "ratchet_votes_total[5m]"


class CounterSource(Protocol):
    """Raw samples of a range query."""

    async def samples(self, query: str, /) -> list[CounterSeries]:
        """The series that a query gives.

        Raises:
            EvidenceUnavailable: they could not be read.

        """
        ...


class LiveFigures:
    """Reads figures on demand."""

    def __init__(self, daily_scores: DailyScores, prometheus: CounterSource, clock: Clock) -> None:
        self._daily_scores = daily_scores
        self._prometheus = prometheus
        self._clock = clock

    def now(self) -> datetime:
        """The present."""
        return self._clock.now()

    async def scores(self) -> ScoreSums:
        """See DailyScores.sums."""
        return await self._daily_scores.sums()

    async def votes(self) -> VoteCounts:
        """Votes of blind comparisons, of all time; empty while Prometheus cannot say."""
        try:
            series = await self._prometheus.samples(VOTES)
        except EvidenceUnavailable as error:
            log.warning(Unavailable.prometheus, during="votes", error=str(error))
            return {}
        # A partition that moved between workers is there twice; its counters never fall.
        newest: dict[tuple[str, str, str, str], float] = {}
        for one in series:
            label, value = one.labels.get, one.samples[-1][1] if one.samples else 0.0
            vote = (
                label("chosen", ""),
                label("rejected", ""),
                label("result", ""),
                label("partition", ""),
            )
            newest[vote] = max(newest.get(vote, 0.0), value)
        found: dict[tuple[str, str, str], float] = {}
        for (chosen, rejected, result, _), value in newest.items():
            found[chosen, rejected, result] = found.get((chosen, rejected, result), 0.0) + value
        return found
