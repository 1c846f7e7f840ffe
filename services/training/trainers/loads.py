"""Loads of models: told of while they take long, and only while bytes move.

A large base is fetched and read for longer than a trainer may stand still, and no step ends
meanwhile. A load that hangs moves nothing, so nothing is told of it and the trainer is ended.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from services.training.trainers.job import Progress, Stage

LOOK_S = 2.0
"""Between two looks at what a load has moved."""
MOVED_BYTES = 1 << 20
"""Least bytes that count as going on; the looks themselves move some hundred."""
COUNTED = ("rchar", "wchar", "read_bytes")
"""Of /proc/self/io: a mapped file's pages are in the last alone."""

_told_of: ContextVar[tuple[Stage, Progress] | None] = ContextVar("told_of", default=None)


@contextmanager
def telling(stage: Stage, progress: Progress) -> Iterator[None]:
    """Loads within are told of as this stage's preparation."""
    token = _told_of.set((stage, progress))
    try:
        yield
    finally:
        _told_of.reset(token)


@contextmanager
def told(what: str) -> Iterator[None]:
    """Tell how long this load goes on already, and how many tensors are in place."""
    telling_to = _told_of.get()
    if telling_to is None:
        yield
        return
    load = ModelLoad(what, *telling_to)
    watching = threading.Thread(target=load.watch, name="load", daemon=True)
    watching.start()
    try:
        with _bars_heard(load):
            yield
    finally:
        load.ended.set()
        watching.join()


class ModelLoad:
    """One load: what is told of it, and whether it moves."""

    def __init__(self, what: str, stage: Stage, progress: Progress) -> None:
        self._what, self._progress = what, progress
        self._stage: Stage = stage
        self._began = time.monotonic()
        self._held, self._exchanged = _resident_bytes(), 0
        self.ended = threading.Event()
        self.done = self.total = 0

    def watch(self) -> None:
        """Tell of the load at every look at which more has moved, until it ends."""
        before = self._moved()
        while not self.ended.wait(LOOK_S):
            now = self._moved()
            if now[0] == before[0] and now[1] - before[1] < MOVED_BYTES:
                continue
            before = now
            self._progress.load(
                self._stage, self._what, self.done, self.total, time.monotonic() - self._began
            )

    def _moved(self) -> tuple[int, int]:
        """Tensors in place, and bytes read, written and taken or given back as memory."""
        held = _resident_bytes()
        self._exchanged += abs(held - self._held)
        self._held = held
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
        counters = {name: int(value) for name, _, value in (line.partition(":") for line in lines)}
        return self.done, self._exchanged + sum(counters[name] for name in COUNTED)


@contextmanager
def _bars_heard(load: ModelLoad) -> Iterator[None]:
    """Count what transformers' own progress bar of a checkpoint's tensors counts, where it is used."""
    logging = sys.modules.get("transformers.utils.logging")
    if logging is None:
        yield
        return

    def hook(bar_of: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        bar = bar_of(*args, **options)
        return _HeardBar(bar, len(args[0]), load) if args and hasattr(args[0], "__len__") else bar

    before = logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


class _HeardBar:
    """A progress bar over tensors that a load counts."""

    def __init__(self, bar: Any, total: int, load: ModelLoad) -> None:
        self._bar, self._load = bar, load
        load.done, load.total = 0, total

    def __iter__(self) -> Iterator[Any]:
        for one in self._bar:
            yield one
            self._load.done += 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)


def _resident_bytes() -> int:
    """Memory of this process, mapped files' pages included."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
