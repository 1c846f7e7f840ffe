"""Rows of a training on disk: mapped Arrow files and token ids, so that memory does not grow with them."""

from __future__ import annotations

import shutil
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

from datasets import Dataset, Features, Json, List
from datasets.utils import tqdm

from services.training.spill import ScratchFile
from services.training.trainers import processes
from services.training.trainers.job import Progress, Stage

BATCH_ROWS = 200
"""Rows that are in memory until they are written."""
UNNAMED = "preparing rows"
"""What a pass over rows does whose progress bar says nothing."""
TURNS = List(Json())
"""A column of turns: as structs, every call would get every other call's arguments."""


class RowFiles:
    """The folder of a stage's mapped files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def mapped(self, rows: Iterable[Mapping[str, Any]], features: Features) -> Dataset:
        """Rows as a dataset that is mapped from disk; what it is made into lies beside it.

        Args:
            rows: Read once.
            features: The columns' types, the same whatever the first rows hold.

        """
        self._count += 1
        return Dataset.from_generator(
            lambda: rows,
            features=features,
            cache_dir=str(self._folder / str(self._count)),
            # In a folder of its own there is nothing that another one could be taken for.
            fingerprint=f"rows-{self._count}",
            writer_batch_size=BATCH_ROWS,
        )


@contextmanager
def row_files(place: Path, stage: Stage, progress: Progress) -> Iterator[RowFiles]:
    """A place for mapped rows below a folder, until the stage ends; what a killed one left goes.

    What is made of the rows meanwhile is told of as the stage's preparation.
    """
    folder = place / f"rows-{processes.rank()}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with _passes_told(stage, progress):
            yield RowFiles(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _passes_told(stage: Stage, progress: Progress) -> Iterator[None]:
    """Tell of each pass over rows by its progress bar, TRL's passes too.

    TRL makes tokens of all rows before its first step, which for a large set takes longer than a
    trainer may stand still; datasets' bars are all that can be heard of it.
    """
    inherited = tqdm.update

    def update(bar: Any, count: float = 1) -> bool | None:
        # A bar that is switched off counts nothing.
        bar.rows_told = int(getattr(bar, "rows_told", bar.n) + count)
        what = str(getattr(bar, "desc", "") or UNNAMED)
        progress.prepare(stage, what, bar.rows_told, bar.total or 0)
        return inherited(bar, count)

    tqdm.update = update
    try:
        yield
    finally:
        del tqdm.update


class TokenRows(Sequence[list[int]]):
    """Token ids of rows in a file without a name; eight bytes a row are in memory."""

    def __init__(self) -> None:
        self._file = ScratchFile()
        self._ends = array("q", [0])

    def append(self, ids: Sequence[int]) -> None:
        """Put a row behind the others."""
        self._file.append(array("i", ids).tobytes())
        self._ends.append(self._file.size)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        """A row's ids, or those of several rows."""
        places = range(len(self))
        if isinstance(index, slice):
            return [self[place] for place in places[index]]
        place = places[index]
        start, end = self._ends[place], self._ends[place + 1]
        ids = array("i")
        ids.frombytes(self._file.read(start, end - start))
        return ids.tolist()
