"""Daily scores of versions: the fold of the whole days of `quality.v1`."""

from __future__ import annotations

from datetime import UTC

from services.rollout.errors import AuditUnavailable
from services.rollout.gains import Day, ScoreSums
from shared.contracts.events.quality import QualityWindow
from shared.contracts.topics import QUALITY
from shared.kafka.log import EventLog, LogUnavailable, Record
from shared.registry.follow import Follower

CAUGHT_UP_S = 5.0
WHOLE_DAY = b'"1d"'
MAX_WINDOWS = 100_000
"""Days of a version in one partition that are remembered; the oldest go."""


class DailyScores(Follower):
    """Keeps each version's scores by day. The topic grows for ever, so it is read once."""

    def __init__(self, event_log: EventLog, *, max_windows: int = MAX_WINDOWS) -> None:
        self._windows: dict[str, tuple[Day, int, float]] = {}
        self._max_windows = max_windows
        super().__init__(event_log, (QUALITY,), self._take)

    async def sums(self) -> ScoreSums:
        """How many scores each version got a day, and their sum.

        Raises:
            AuditUnavailable: the topic was not read to its end since the start.

        """
        try:
            await self.caught_up(CAUGHT_UP_S)
        except LogUnavailable as error:
            raise AuditUnavailable(f"the scores are not read yet: {error}; try again") from None
        found: dict[Day, tuple[float, float]] = {}
        for day, more, score_sum in self._windows.values():
            count, total = found.get(day, (0.0, 0.0))
            found[day] = (count + more, total + score_sum)
        return found

    def _take(self, record: Record) -> None:
        if WHOLE_DAY not in (record.value or b""):
            return
        window = QualityWindow.model_validate_json(record.value or b"")
        day = (window.version, window.start.astimezone(UTC).date())
        self._windows[record.key] = (day, window.score_count, window.score_sum)
        if len(self._windows) > self._max_windows:
            del self._windows[next(iter(self._windows))]
