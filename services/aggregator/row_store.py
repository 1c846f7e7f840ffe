"""Row store: a partition's rows between events, with the indexes that spare scanning them.

Three indexes make recovery and expiry linear in what changed and not in what is held: rows by the
time at which they are due, rows that the changelog brought since they were last settled, and rows in
which feedback waits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from services.aggregator import join
from services.aggregator.batch import Batch, DueEntry
from services.aggregator.fold import FoldRules
from services.aggregator.rows import Row, TraceRow, decode_row


class RowStore(Protocol):
    """Where one partition's rows are. It holds what the changelog confirmed, and nothing else."""

    def get(self, key: bytes) -> bytes | None:
        """The row, checkpoint or part stored under a key."""
        ...

    def due(self, until_ms: int, after: DueEntry | None) -> Iterator[DueEntry]:
        """Entries due by `until_ms` and later than `after`, in their order.

        An entry may be of a row that is gone or due at another time by now.
        """
        ...

    def unsettled(self) -> Iterator[bytes]:
        """Keys of rows from the changelog that may hold events above the checkpoint."""
        ...

    def settle(self, keys: Iterable[bytes]) -> None:
        """Forget that these rows came from the changelog: the checkpoint covers them."""
        ...

    def waiting(self) -> Iterator[int]:
        """Per feedback that waits for its interaction, the minute in which it reached the log."""
        ...

    def held(self) -> int:
        """How many rows there are, the checkpoint and its parts left out."""
        ...

    def tenants(self) -> dict[str, int]:
        """Tenant -> bytes of its traces' rows (see tenant_budget)."""
        ...

    def parts(self) -> Iterator[bytes]:
        """Keys of the checkpoint's parts (see checkpoint)."""
        ...

    def commit(self, batch: Batch) -> None:
        """Store a batch that the changelog confirmed, whole."""
        ...


class RowTexts(Protocol):
    """Encrypts people's texts in rows as they are stored, and decrypts them."""

    def close_row(self, key: bytes, stored: bytes) -> bytes:
        """A row to store."""
        ...

    def open_row(self, key: bytes, stored: bytes) -> bytes:
        """A stored row, as it was before `close_row`."""
        ...


class RowIndex(NamedTuple):
    """What the indexes hold of one row."""

    due_ms: int
    waiting: tuple[int, ...]


def index_row(row: Row, rules: FoldRules) -> RowIndex:
    """The index entries of a row: when it is due in stream time, and which feedback waits in it."""
    if isinstance(row, TraceRow):
        waiting = tuple(row.waiting()) if row.entries else ()
        return RowIndex(math.ceil(join.due_s(row, rules) * 1000), waiting)
    return RowIndex(math.ceil((row.touched_s + rules.rated_s) * 1000), ())


def index_stored(key: bytes, stored: bytes, rules: FoldRules) -> RowIndex:
    """The index entries of a row as it is stored."""
    return index_row(decode_row(key, stored), rules)
