"""Crash marker: a file that names what a consumer was at, found by the process that follows a killed one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

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


class CrashMarker:
    """Counts the processes that ended at one place without a word, such as by the kernel's OOM killer.

    The file is there while records are read and handled. One that names many places says that a
    process was killed; one that names a single place, at which, and how many before it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._dead: Mapping[tuple[Step, MarkedPlace], int] = {}
        self.killed = False
        """Whether the process before was killed while it read or handled."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = orjson.loads(path.read_bytes())
            places = [MarkedPlace(*place) for place in found["places"]]
            self.killed = True
            if len(places) == 1:
                self._dead = {(found["step"], places[0]): found["deaths"] + 1}

    def ends_processes(self, step: Step, place: MarkedPlace) -> bool:
        """Whether MAX_DEATHS processes ended at this place, in this step, one after the other."""
        return self._dead.get((step, place), 0) >= MAX_DEATHS

    def mark(self, step: Step, places: Iterable[MarkedPlace]) -> None:
        """Write what is begun now. On a disk that refuses it, the consumer goes on unmarked."""
        marked = list(places)
        deaths = self._dead.get((step, marked[0]), 0) if len(marked) == 1 else 0
        found = {"step": step, "places": [list(place) for place in marked], "deaths": deaths}
        whole = self._path.with_suffix(".new")
        try:
            whole.write_bytes(orjson.dumps(found))
            whole.replace(self._path)
        except OSError as error:
            log.warning("crash_marker.not_written", path=str(self._path), error=str(error))

    def clear(self) -> None:
        """Take the mark away: nothing is read or handled now."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def passed(self) -> None:
        """Forget the process before: what it was at has been read and handled."""
        self.killed = False
        self._dead = {}
