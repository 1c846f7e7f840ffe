"""Offset gaps: offsets that the log skipped, or that Faust has not handed out. Pure.

Faust may hand out an event from before a change of the assignment. Seeking back brings what is
missing; where the same offset comes first again, the log has nothing in between (a transaction's
marker, or events beyond their retention).

A seek may be lost. Faust drops what lies below its own read offset, and an event that it was handing
out during the seek sets that offset forward again. A seek that brought nothing is repeated.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

SEEK_AGAIN_S = 1.0
"""How long a seek may take to bring its first event."""


class Gap(Enum):
    """What to do about an event whose offset lies beyond the expected one."""

    seek = "seek"
    """Read again from the expected offset, and ignore this event."""
    wait = "wait"
    """Ignore this event: it was on its way before the seek."""
    absent = "absent"
    """The log has nothing in between: take this event."""


class Sought(NamedTuple):
    """A seek back: to which offset, what came in its place, and when, in monotonic seconds."""

    expected: int
    first: int
    at_s: float


class OffsetGaps:
    """Remembers where it was sought back, by (topic, partition)."""

    def __init__(self) -> None:
        self._sought: dict[tuple[str, int], Sought] = {}

    def meet(self, topic: str, partition: int, offset: int, *, expected: int, now_s: float) -> Gap:
        """An event beyond the expected offset came."""
        place = (topic, partition)
        sought = self._sought.get(place)
        if sought is not None and sought.first == offset:
            del self._sought[place]
            return Gap.absent
        if sought is None or offset < sought.first:
            self._sought[place] = Sought(expected, offset, now_s)
            return Gap.seek
        return Gap.wait

    def close(self, topic: str, partition: int) -> None:
        """The expected offset came: nothing is awaited there any more."""
        if self._sought:
            self._sought.pop((topic, partition), None)

    def overdue(self, now_s: float) -> list[tuple[str, int, int]]:
        """Topic, partition and offset of each seek to repeat now, as it brought nothing in time."""
        late = [
            (*place, sought.expected)
            for place, sought in self._sought.items()
            if now_s - sought.at_s >= SEEK_AGAIN_S
        ]
        for topic, partition, _ in late:
            place = (topic, partition)
            self._sought[place] = self._sought[place]._replace(at_s=now_s)
        return late

    def clear(self) -> None:
        """The assignment changed: nothing that was sought is awaited any more."""
        self._sought.clear()
