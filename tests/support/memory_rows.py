"""Row store in memory: the twin of `DiskRows`, for tests of many short lives."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, MutableMapping

from services.aggregator.batch import Batch, DueEntry
from services.aggregator.checkpoint import part_prefix
from services.aggregator.fold import FoldRules
from services.aggregator.row_store import index_stored
from services.aggregator.rows import checkpoint_key, partition_of, tenant_of


class MemoryRows:
    """See RowStore. Its rows are those of the partition in `stored`, which holds nothing but rows."""

    def __init__(
        self, partition: int, rules: FoldRules, stored: MutableMapping[bytes, bytes] | None = None
    ) -> None:
        self._partition = partition
        self._checkpoint_key = checkpoint_key(partition)
        self._rows: MutableMapping[bytes, bytes] = {} if stored is None else stored
        self._keys = {
            key
            for key in self._rows
            if partition_of(key) == partition and not key.startswith(self._checkpoint_key)
        }
        self._unsettled = dict.fromkeys(self._keys)
        self._due: list[DueEntry] = []
        self._waiting: dict[bytes, tuple[int, ...]] = {}
        for key in self._keys:
            due_ms, self._waiting[key] = index_stored(key, self._rows[key], rules)
            self._due.append(DueEntry(due_ms, key))
        self._due.sort()

    def get(self, key: bytes) -> bytes | None:
        """See RowStore.get."""
        return self._rows.get(key)

    def due(self, until_ms: int, after: DueEntry | None) -> Iterator[DueEntry]:
        """See RowStore.due."""
        first = bisect.bisect_right(self._due, after) if after is not None else 0
        for entry in self._due[first:]:
            if entry.due_ms > until_ms:
                return
            yield entry

    def unsettled(self) -> Iterator[bytes]:
        """See RowStore.unsettled."""
        return iter(list(self._unsettled))

    def settle(self, keys: Iterable[bytes]) -> None:
        """See RowStore.settle."""
        for key in keys:
            self._unsettled.pop(key, None)

    def waiting(self) -> Iterator[int]:
        """See RowStore.waiting."""
        for minutes in self._waiting.values():
            yield from minutes

    def held(self) -> int:
        """See RowStore.held."""
        return len(self._keys)

    def tenants(self) -> dict[str, int]:
        """See RowStore.tenants."""
        held: Counter[str] = Counter()
        for key in self._keys:
            if (tenant := tenant_of(key)) is not None:
                held[tenant] += len(self._rows[key])
        return dict(held)

    def parts(self) -> Iterator[bytes]:
        """See RowStore.parts."""
        prefix = part_prefix(self._partition)
        return (key for key in list(self._rows) if key.startswith(prefix))

    def commit(self, batch: Batch) -> None:
        """See RowStore.commit."""
        for key, value in batch.rows:
            self._rows[key] = value
            self._keys.add(key)
        self._rows.update(batch.parts)
        self._rows[self._checkpoint_key] = batch.checkpoint
        for key in batch.dropped:
            self._rows.pop(key, None)
            self._keys.discard(key)
        for entry in batch.index.looked:
            place = bisect.bisect_left(self._due, entry)
            if place < len(self._due) and self._due[place] == entry:
                del self._due[place]
        for entry in batch.index.due:
            bisect.insort(self._due, entry)
        for key, minutes in batch.index.waiting.items():
            self._waiting[key] = minutes
