"""Offset gaps: offsets that the log skipped, or that Faust has not handed out. Pure.

Faust may hand out an event from before a change of the assignment, or drop what it fetched while it
recovered. Seeking back brings what is missing; where the same offset comes first again, the log has
nothing in between (a transaction's marker, or events beyond their retention).

Two things show no gap: a drop with no event after it, and a seek that was lost (an event being handed
out meanwhile sets Faust's read offset forward again, and Faust drops what lies below it). Both leave
the expected offset behind the place from which the client reads next, while nothing comes: it is sought
again. Not before: a seek throws away what the client has fetched, and a worker that is short of CPU
would fetch the same events for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

LAG_S = 1.0
"""How long an event that the client has handed out may take to come, before it is sought."""
LAG_READS = 2
"""And how many reads, as the one that handed it out may not have returned yet, however long it takes."""
MAX_LAG_S = 60.0
"""Longest time between two such seeks; a log that ends with a marker lags until its next event."""


class Gap(Enum):
    """What to do about an event whose offset lies beyond the expected one."""

    seek = "seek"
    """Read again from the expected offset, and ignore this event."""
    wait = "wait"
    """Ignore this event: it was on its way before the seek."""
    absent = "absent"
    """The log has nothing in between: take this event."""


class OffsetGaps:
    """Remembers, by (topic, partition), which event came first where it was sought back."""

    def __init__(self) -> None:
        self._sought: dict[tuple[str, int], int] = {}

    def meet(self, topic: str, partition: int, offset: int) -> Gap:
        """An event beyond the expected offset came."""
        place = (topic, partition)
        first = self._sought.get(place)
        if first == offset:
            del self._sought[place]
            return Gap.absent
        if first is None or offset < first:
            self._sought[place] = offset
            return Gap.seek
        return Gap.wait

    def close(self, topic: str, partition: int) -> None:
        """The expected offset came: nothing is awaited there any more."""
        if self._sought:
            self._sought.pop((topic, partition), None)

    def clear(self) -> None:
        """The assignment changed: nothing that was sought is awaited any more."""
        self._sought.clear()


class ReadPlace(NamedTuple):
    """How far the client has read a topic's partition."""

    position: int
    """Offset of the event that it hands out next."""
    end: int
    """Offset of the next event to be written, as last fetched."""


class SourcePosition(NamedTuple):
    """The offset expected next of a topic's partition, and how far the client has read it."""

    topic: str
    partition: int
    expected: int
    place: ReadPlace


class _Lag(NamedTuple):
    expected: int
    since_s: float
    """When it was seen first, or sought last, in monotonic seconds."""
    since_reads: int
    wait_s: float


class Lags:
    """Remembers, by (topic, partition), since when an event that was handed out does not come."""

    def __init__(self) -> None:
        self._lags: dict[tuple[str, int], _Lag] = {}

    def overdue(
        self, positions: Iterable[SourcePosition], now_s: float, reads: int
    ) -> list[SourcePosition]:
        """Which of all owned positions to seek now: rarer and rarer while nothing comes.

        Args:
            positions: all that are owned.
            now_s: monotonic seconds.
            reads: how many reads of the client have returned.
        """
        late: list[SourcePosition] = []
        lags: dict[tuple[str, int], _Lag] = {}
        for position in positions:
            if position.expected >= min(position.place):
                continue
            place = (position.topic, position.partition)
            lag = self._lags.get(place)
            if lag is None or lag.expected != position.expected:
                lag = _Lag(position.expected, now_s, reads, LAG_S)
            elif now_s - lag.since_s >= lag.wait_s and reads - lag.since_reads >= LAG_READS:
                late.append(position)
                lag = _Lag(position.expected, now_s, reads, min(2 * lag.wait_s, MAX_LAG_S))
            lags[place] = lag
        self._lags = lags
        return late

    def clear(self) -> None:
        """The assignment changed: each place has its time anew."""
        self._lags.clear()
