"""Recent records of the spool: kept in memory beside the disk, so that shipping reads no file."""

from __future__ import annotations

from shared.kafka.log import NewRecord

SpoolPlace = tuple[int, int]
"""Segment, and offset in bytes within it."""


class RecentRecords:
    """Records by the place where they begin, of at most so many bytes of frames together.

    What finds no room, or was taken once, is read from the disk.
    """

    __slots__ = ("_bytes", "_limit", "_records")

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._bytes = 0
        self._records: dict[SpoolPlace, tuple[NewRecord, int]] = {}

    def add(self, place: SpoolPlace, record: NewRecord, end: int) -> None:
        """Keep a record whose frame ends at the offset `end`."""
        size = end - place[1]
        if self._bytes + size <= self._limit:
            self._records[place] = record, end
            self._bytes += size

    def take(self, place: SpoolPlace) -> tuple[NewRecord, int] | None:
        """The record at a place and where its frame ends; None where it is not here."""
        found = self._records.pop(place, None)
        if found is not None:
            self._bytes -= found[1] - place[1]
        return found

    def clear(self) -> None:
        """Forget all of them."""
        self._records.clear()
        self._bytes = 0
