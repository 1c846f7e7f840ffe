"""Live figures for the gain of versions: daily scores from `quality.v1`, votes from Prometheus."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Protocol

import structlog

from services.rollout.counters import CounterSeries
from services.rollout.errors import AuditUnavailable
from services.rollout.gains import ScoreSums, VoteCounts
from services.rollout.prometheus import EvidenceUnavailable
from shared.clock import Clock
from shared.contracts.events.quality import QualityWindow
from shared.contracts.topics import QUALITY
from shared.kafka.log import EventLog, LogUnavailable, read_to_end
from shared.observability.events import Unavailable

log = structlog.get_logger(__name__)

READ_S = 30.0
KEPT_S = 60.0
"""How long daily scores are kept before they are read again."""
WHOLE_DAY = b'"1d"'
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
    """Reads figures on demand, and keeps the daily ones for a minute."""

    def __init__(self, event_log: EventLog, prometheus: CounterSource, clock: Clock) -> None:
        self._log = event_log
        self._prometheus = prometheus
        self._clock = clock
        self._scores: ScoreSums = {}
        self._read_at = float("-inf")

    def now(self) -> datetime:
        """The present."""
        return self._clock.now()

    async def scores(self) -> ScoreSums:
        """How many scores each version got a day, and their sum.

        Raises:
            AuditUnavailable: the topic was not read to its end in READ_S seconds.

        """
        if self._clock.monotonic() - self._read_at < KEPT_S:
            return self._scores
        try:
            records = await read_to_end(
                self._log,
                QUALITY,
                timeout_s=READ_S,
                keep=lambda record: WHOLE_DAY in (record.value or b""),
            )
        except LogUnavailable as error:
            raise AuditUnavailable(f"the scores could not be read: {error}; try again") from None
        windows: dict[str, QualityWindow] = {}
        for record in records:
            try:
                windows[record.key] = QualityWindow.model_validate_json(record.value or b"")
            except ValueError:
                continue  # What nobody could read is in no gain.
        found: dict[tuple[str, date], tuple[float, float]] = {}
        for window in windows.values():
            day = (window.version, window.start.astimezone(UTC).date())
            count, total = found.get(day, (0.0, 0.0))
            found[day] = (count + window.score_count, total + window.score_sum)
        self._scores, self._read_at = found, self._clock.monotonic()
        return found

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
            labels, value = one.labels, one.samples[-1][1] if one.samples else 0.0
            names = ("chosen", "rejected", "result", "partition")
            vote = tuple(labels.get(name, "") for name in names)
            assert len(vote) == len(names)
            newest[vote] = max(newest.get(vote, 0.0), value)  # type: ignore[index]
        found: dict[tuple[str, str, str], float] = {}
        for (chosen, rejected, result, _), value in newest.items():
            found[chosen, rejected, result] = found.get((chosen, rejected, result), 0.0) + value
        return found
