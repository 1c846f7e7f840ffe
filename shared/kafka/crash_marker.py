"""Crash marker: a file that names what a consumer was at, found by the process that follows a killed one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson
import structlog

log = structlog.get_logger(__name__)

MAX_DEATHS = 2
"""Processes that a record may end before it is stepped over."""

Step = Literal["read", "handle"]


class MarkedPlace(NamedTuple):
    """Where a consumer was: the offset that comes next in a partition."""

    topic: str
    partition: int
    offset: int


class Suspect(NamedTuple):
    """What may have ended a process in a partition, and how many in a row ended at just that."""

    step: Step
    offset: int
    deaths: int


class CrashMarker:
    """Counts the processes that ended at one place without a word, such as by the kernel's OOM killer.

    The file names what is read or handled now. Where a process finds such a mark, the one before it
    was killed there: each partition named is suspected, and a place that was named alone is blamed.
    A suspicion stays in the file until its partition has been passed, however many processes it
    takes: after a death the group may give the partition to another replica for a while.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._suspects: dict[tuple[str, int], Suspect] = {}
        """By (topic, partition): one for each partition of the group at most."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            self._take(orjson.loads(path.read_bytes()))

    def _take(self, found: Any) -> None:
        """Take over the file of the process before: each mark in it is a death."""
        step, places = found["step"], [MarkedPlace(*place) for place in found["places"]]
        suspects = found.get("suspects", ())
        self._suspects = {(topic, number): Suspect(*of) for topic, number, *of in suspects}
        for topic, number, offset in places:
            known = self._suspects.get((topic, number))
            if len(places) > 1:
                self._suspects.setdefault((topic, number), Suspect(step, offset, 0))
            elif known is not None and (known.step, known.offset) == (step, offset):
                self._suspects[topic, number] = known._replace(deaths=known.deaths + 1)
            else:
                self._suspects[topic, number] = Suspect(step, offset, 1)

    def suspects(self, topic: str, partition: int) -> bool:
        """Whether a killed process may have been at something in this partition."""
        return (topic, partition) in self._suspects

    def ends_processes(self, step: Step, place: MarkedPlace) -> bool:
        """Whether MAX_DEATHS processes ended at this place, in this step, one after the other."""
        suspect = self._suspects.get(place[:2])
        return (
            suspect is not None
            and (suspect.step, suspect.offset) == (step, place.offset)
            and suspect.deaths >= MAX_DEATHS
        )

    def mark(self, step: Step, places: Iterable[MarkedPlace]) -> None:
        """Write what is begun now. On a disk that refuses it, the consumer goes on unmarked."""
        suspects = [(*place, *suspect) for place, suspect in self._suspects.items()]
        found = {"step": step, "places": [list(place) for place in places], "suspects": suspects}
        whole = self._path.with_suffix(".new")
        try:
            whole.write_bytes(orjson.dumps(found))
            whole.replace(self._path)
        except OSError as error:
            log.warning("crash_marker.not_written", path=str(self._path), error=str(error))

    def clear(self) -> None:
        """Nothing is read or handled now; partitions not passed yet stay suspected."""
        if self._suspects:
            self.mark("read", ())
            return
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def passed(self, topic: str, partition: int) -> None:
        """What a killed process may have been at in this partition has been read and handled."""
        self._suspects.pop((topic, partition), None)
