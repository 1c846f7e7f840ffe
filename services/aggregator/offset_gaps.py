"""Offset gaps: offsets that the log skipped, or that Faust has not handed out. Pure.

Faust may hand out an event from before a change of the assignment. Seeking back brings what is
missing; where the same offset comes first again, the log has nothing in between (a transaction's
marker, or events beyond their retention).
"""

from __future__ import annotations

from enum import Enum


class Gap(Enum):
    """What to do about an event whose offset lies beyond the expected one."""

    seek = "seek"
    """Read again from the expected offset, and ignore this event."""
    wait = "wait"
    """Ignore this event: it was on its way before the seek."""
    absent = "absent"
    """The log has nothing in between: take this event."""


class OffsetGaps:
    """Remembers where it was sought back, by (topic, partition)."""

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

    def clear(self) -> None:
        """The assignment changed: nothing that was sought is awaited any more."""
        self._sought.clear()
