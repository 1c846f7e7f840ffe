"""Collections that spill to disk, so that memory does not grow with the rows of a dataset.

Up to SPILL_ROWS entries are in memory, more are in files without a name below TMPDIR: a process that
is killed leaves nothing behind. A mark of one byte a row says which rows a stage kept.
"""

# pyright: strict
from __future__ import annotations

import contextlib
import errno
import io
import os
import pickle
import shutil
import sqlite3
import tempfile
import weakref
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from heapq import merge
from itertools import chain, compress, islice
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from services.training.errors import DiskFull

SPILL_ROWS = 1_000
"""Most entries of a collection in memory."""
BATCH_ROWS = 50
"""Rows that are written, and read back, at once."""
SORT_ROWS = 20_000
"""Keys of rows in a sorted run: what a sort holds in memory."""
CACHE_KIB = 8 * 1024
"""Memory of a table that has spilled."""
BUFFER_BYTES = 64 * 1024
T = TypeVar("T")
K = TypeVar("K", str, bytes)


class ScratchFile:
    """A file without a name: appended to, and read at any place by any number of readers."""

    def __init__(self) -> None:
        """Raises `DiskFull` where no file can be made below TMPDIR."""
        with _room():
            self._file = tempfile.TemporaryFile(buffering=BUFFER_BYTES)  # noqa: SIM115 - closed below
        self._size = 0
        weakref.finalize(self, _close, self._file)

    @property
    def size(self) -> int:
        """Bytes written."""
        return self._size

    def append(self, data: bytes) -> int:
        """Write at the end; returns the place.

        Raises:
            DiskFull: there is no room.

        """
        with _room():
            self._file.write(data)
        self._size += len(data)
        return self._size - len(data)

    def read(self, place: int, size: int) -> bytes:
        """Bytes from a place on."""
        self._flush()
        return os.pread(self._file.fileno(), size, place)

    def reader(self) -> io.BufferedReader:
        """A reader from the beginning, with a position of its own."""
        self._flush()
        return io.BufferedReader(_Reader(self), BUFFER_BYTES)

    def _flush(self) -> None:
        with _room():
            self._file.flush()


class _Reader(io.RawIOBase):
    def __init__(self, file: ScratchFile) -> None:
        self._file = file
        self._place = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._file.read(self._place, len(buffer))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


class SpilledRows(Collection[T]):
    """Rows on disk in the order they came, read again any number of times."""

    def __init__(self, rows: Iterable[T]) -> None:
        self._file = ScratchFile()
        self._count = 0
        rows = iter(rows)
        while batch := list(islice(rows, BATCH_ROWS)):
            self._file.append(pickle.dumps(batch, pickle.HIGHEST_PROTOCOL))
            self._count += len(batch)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        with self._file.reader() as file:
            left = self._count
            while left > 0:
                batch = cast("list[T]", pickle.load(file))  # noqa: S301 - nobody else can write it
                left -= len(batch)
                yield from batch

    def __contains__(self, row: object) -> bool:
        return any(row == one for one in self)


class KeptRows(Collection[T]):
    """Those of some rows that a stage kept, in their order."""

    def __init__(self, rows: Collection[T], wanted: Callable[[T], bool]) -> None:
        self._rows = rows
        self._marks = bytearray(map(wanted, rows))
        self._count = self._marks.count(1)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        return compress(self._rows, self._marks)

    def __contains__(self, row: object) -> bool:
        return any(row == one for one in self)


class MadeRows(Collection[T]):
    """Rows that are made of others whenever they are read."""

    def __init__(self, sources: Collection[Any], make: Callable[[Any], Iterable[T]]) -> None:
        """`make` gives the rows of a source, the same each time."""
        self._sources = sources
        self._make = make

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(map(self._make, self._sources))

    def __contains__(self, row: object) -> bool:
        return any(row == one for one in self)


def spilled(rows: Iterable[T]) -> Collection[T]:
    """Rows that can be read again: a list of them while they are few."""
    if isinstance(rows, list | SpilledRows | KeptRows):
        return cast("Collection[T]", rows)
    rows = iter(rows)
    first = list(islice(rows, SPILL_ROWS + 1))
    return first if len(first) <= SPILL_ROWS else SpilledRows(chain(first, rows))


def keep(rows: Collection[T], wanted: Callable[[T], bool]) -> Collection[T]:
    """Rows that are wanted; each is asked about once, at once, in order."""
    if isinstance(rows, list):
        return [row for row in rows if wanted(row)]
    return KeptRows(rows, wanted)


def made(sources: Collection[Any], make: Callable[[Any], Iterable[T]]) -> Collection[T]:
    """Rows made of others: a list where those are one, else made whenever they are read."""
    rows = MadeRows(sources, make)
    return list(rows) if isinstance(sources, list) else rows


def sorted_rows(rows: Iterable[T], key: Callable[[T], Any], run_rows: int = 0) -> Collection[T]:
    """Rows in order; those of equal keys in the order they came (external merge sort).

    Args:
        rows: What is sorted.
        key: What it is sorted by.
        run_rows: Rows of a run, which are in memory at once; 0: SORT_ROWS.

    """
    rows = iter(rows)
    runs: list[Collection[T]] = []
    while batch := list(islice(rows, run_rows or SORT_ROWS)):
        batch.sort(key=key)
        runs.append(spilled(batch if len(batch) <= SPILL_ROWS else iter(batch)))
    if len(runs) == 1:
        return runs[0]
    return spilled(merge(*runs, key=key))


class SpilledTable(Generic[K]):
    """Bytes by key."""

    def __init__(self) -> None:
        self._few: dict[K, bytes] | None = {}
        self._table: sqlite3.Connection | None = None

    def __len__(self) -> int:
        if self._table is None:
            return len(self._known)
        (count,) = self._ask("SELECT count(*) FROM kept").fetchone()
        return int(count)

    def __contains__(self, key: K) -> bool:
        if self._table is None:
            return key in self._known
        return self._ask("SELECT 1 FROM kept WHERE key = ?", key).fetchone() is not None

    def add(self, key: K, value: bytes = b"") -> bool:
        """Put a key in that is not there yet; tells whether it was not.

        Raises:
            DiskFull: there is no room.

        """
        if self._table is None:
            if key in self._known:
                return False
            self._known[key] = value
            self._spill()
            return True
        return self._ask("INSERT OR IGNORE INTO kept VALUES (?, ?)", key, value).rowcount > 0

    def put(self, key: K, value: bytes) -> None:
        """Put a value in, in place of the key's older one; errors are those of `add`."""
        if self._table is None:
            self._known[key] = value
            self._spill()
        else:
            self._ask("INSERT OR REPLACE INTO kept VALUES (?, ?)", key, value)

    def first(self, key: K, value: bytes) -> bytes:
        """The value that the key was first added with, which is this one where it is new."""
        if self._table is None:
            known = self._known.setdefault(key, value)
            self._spill()
            return known
        if self.add(key, value):
            return value
        return bytes(self._ask("SELECT value FROM kept WHERE key = ?", key).fetchone()[0])

    def pop(self, key: K) -> bool:
        """Take a key out; tells whether it was there."""
        if self._table is None:
            return self._known.pop(key, None) is not None
        return self._ask("DELETE FROM kept WHERE key = ?", key).rowcount > 0

    def values(self) -> Iterator[bytes]:
        """All values, in the order of their keys."""
        if self._table is None:
            return (self._known[key] for key in sorted(self._known))
        return (bytes(value) for (value,) in self._ask("SELECT value FROM kept ORDER BY key"))

    @property
    def _known(self) -> dict[K, bytes]:
        assert self._few is not None
        return self._few

    def _ask(self, statement: str, *values: object) -> sqlite3.Cursor:
        assert self._table is not None
        with _room():
            return self._table.execute(statement, values)

    def _spill(self) -> None:
        if len(self._known) <= SPILL_ROWS:
            return
        with _room():
            handle, path = tempfile.mkstemp(prefix="ratchet-")
            os.close(handle)
            # One writer, and nothing to recover: the file has lost its name before a row is in it.
            self._table = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            weakref.finalize(self, self._table.close)
            self._ask("PRAGMA journal_mode = OFF")
            self._ask("PRAGMA synchronous = OFF")
            self._ask(f"PRAGMA cache_size = -{CACHE_KIB}")
            self._ask("CREATE TABLE kept (key PRIMARY KEY, value BLOB) WITHOUT ROWID")
            Path(path).unlink()
            self._ask("BEGIN")
            self._table.executemany("INSERT INTO kept VALUES (?, ?)", self._known.items())
        self._few = None


def require_room(wanted: int) -> None:
    """Refuse to begin on a disk that would be full before the rows are selected.

    Raises:
        DiskFull: names the folder, what is free and what to do.

    """
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise DiskFull(
            f"disk: {free / 2**20:.0f} MiB are free below {folder}, {wanted / 2**20:.0f} MiB are "
            "wanted to select the rows of this dataset; free some, or let TMPDIR name a larger disk"
        )


@contextlib.contextmanager
def _room() -> Generator[None]:
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        no_room = getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        if not no_room and not isinstance(error, sqlite3.OperationalError):
            raise
        raise DiskFull(
            f"disk: no room below {tempfile.gettempdir()} for the rows of a dataset ({error}); "
            "free some, or let TMPDIR name a larger disk"
        ) from error


def _close(file: Any) -> None:
    # What is not written yet is wanted no more, and its disk may be full.
    with contextlib.suppress(OSError):
        file.close()
