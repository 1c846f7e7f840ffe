"""Journal of events whose texts are being checked: what is left of them where the process is killed.

Each event waits here with its texts withheld, so that no unchecked text is on the disk, until its
checked form is in the spool. A process that starts moves what is left into its spool. An event may
then be there in both forms, the checked one first: readers count the first event of a trace.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.router.spool import Place, Spool
from shared.kafka.log import NewRecord

log = structlog.get_logger(__name__)

FOLDER = "unchecked"
"""Beside the spool's."""
LIMIT_BYTES = 64 * 1024 * 1024


@dataclass(slots=True, eq=False)
class JournalEntry:
    """An event in the journal."""

    end: Place
    """Behind it."""
    settled: bool = False


class UncheckedJournal:
    """See the module. What the disk does not take is missing after a kill, and nothing else."""

    def __init__(self, directory: Path) -> None:
        """Open or make the folder FOLDER in a process's own."""
        self._spool = Spool(directory / FOLDER, limit_bytes=LIMIT_BYTES, memory_bytes=0)
        self._entries: deque[JournalEntry] = deque()
        self.recovered = 0
        """Events of an earlier process that were moved into the spool."""

    def note(self, record: NewRecord) -> JournalEntry:
        """Keep an event until it is settled."""
        self._spool.append(record)
        entry = JournalEntry(self._spool.end)
        self._entries.append(entry)
        return entry

    def settle(self, entries: Iterable[JournalEntry]) -> None:
        """Forget events whose checked form is in the spool."""
        for entry in entries:
            entry.settled = True
        end = None
        while self._entries and self._entries[0].settled:
            end = self._entries.popleft().end
        if end is not None:
            self._spool.trim(end)

    def recover(self, spool: Spool) -> int:
        """Move what an earlier process left into a spool; returns how many found no room there."""
        lost = 0
        try:
            while True:
                records, place = self._spool.batch()
                if not records:
                    break
                kept = sum(map(spool.append, records))
                self.recovered += kept
                lost += len(records) - kept
                self._spool.trim(place)
        except OSError as error:
            log.warning("unchecked_journal.read_failed", error=str(error))
        if self.recovered or lost:
            log.warning("unchecked_journal.recovered", events=self.recovered, lost=lost)
        return lost

    def close(self) -> None:
        """Close the files; what waits stays there for the next process."""
        self._spool.close()
