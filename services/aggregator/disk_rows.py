"""Row store on disk: one partition's rows and indexes as keys of the row database.

Every key begins with the partition. Rows keep their own keys; index entries have kinds that no row has:
`~due` (time in milliseconds, big-endian, then the row's key), `~new` and `~wait` (the row's key),
`~bytes` (the tenant), and one `~position`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import orjson
from rocksdict import WriteBatch

from services.aggregator.batch import Batch, DueEntry
from services.aggregator.checkpoint import part_prefix
from services.aggregator.fold import FoldRules
from services.aggregator.row_database import RowDatabase
from services.aggregator.row_store import index_stored
from services.aggregator.rows import SEPARATOR, checkpoint_key, tenant_of
from services.aggregator.tenant_budget import added
from shared.clock import Clock

TIME_BYTES = 8
INDEX_FORMAT = 2
"""Of the indexes; rows with others are restored whole. 2: bytes by tenant."""


class ChangelogPosition(NamedTuple):
    """How far on the changelog a partition's rows are."""

    offset: int
    """Of the last record applied."""
    at_s: float
    """When it was applied."""
    held: int
    """How many rows there were then."""
    index_format: int = 1


class DiskRows:
    """See RowStore."""

    def __init__(
        self, database: RowDatabase, partition: int, *, rules: FoldRules, clock: Clock
    ) -> None:
        self._database = database
        self._clock = clock
        self._rules = rules
        self._checkpoint_key = checkpoint_key(partition)
        self._parts = part_prefix(partition)
        self._prefix = f"{partition}{SEPARATOR}".encode()
        self._due, self._new, self._wait, self._bytes, self._place = (
            self._prefix + kind
            for kind in (b"~due\x1f", b"~new\x1f", b"~wait\x1f", b"~bytes\x1f", b"~position")
        )

    def position(self) -> ChangelogPosition | None:
        """How far the rows are; None where there are none."""
        stored = self._database.get(self._place)
        return ChangelogPosition(*orjson.loads(stored)) if stored is not None else None

    def get(self, key: bytes) -> bytes | None:
        """See RowStore.get."""
        return self._database.get(key)

    def due(self, until_ms: int, after: DueEntry | None) -> Iterator[DueEntry]:
        """See RowStore.due."""
        start = self._due if after is None else self._due_key(after) + b"\x00"
        end = self._due + max(0, until_ms + 1).to_bytes(TIME_BYTES, "big")
        for stored in self._database.scan(start, end) if start < end else ():
            entry = stored[len(self._due) :]
            yield DueEntry(int.from_bytes(entry[:TIME_BYTES], "big"), entry[TIME_BYTES:])

    def unsettled(self) -> Iterator[bytes]:
        """See RowStore.unsettled."""
        for stored in self._database.scan(self._new, _after(self._new)):
            yield stored[len(self._new) :]

    def settle(self, keys: Iterable[bytes]) -> None:
        """See RowStore.settle."""
        batch = WriteBatch(raw_mode=True)
        for key in keys:
            batch.delete(self._new + key)
        self._database.write(batch)

    def waiting(self) -> Iterator[int]:
        """See RowStore.waiting."""
        for _, minutes in self._database.items(self._wait, _after(self._wait)):
            yield from orjson.loads(minutes)

    def held(self) -> int:
        """See RowStore.held."""
        position = self.position()
        return position.held if position is not None else 0

    def tenants(self) -> dict[str, int]:
        """See RowStore.tenants."""
        return {
            key[len(self._bytes) :].decode(): int(held)
            for key, held in self._database.items(self._bytes, _after(self._bytes))
        }

    def parts(self) -> Iterator[bytes]:
        """See RowStore.parts."""
        return self._database.scan(self._parts, _after(self._parts))

    def commit(self, batch: Batch) -> None:
        """See RowStore.commit."""
        written = WriteBatch(raw_mode=True)
        for entry in batch.index.looked:
            written.delete(self._due_key(entry))
        for entry in batch.index.due:
            written.put(self._due_key(entry), b"")
        for key, minutes in batch.index.waiting.items():
            self._put_waiting(written, key, minutes)
        for key, value in batch.rows:
            written.put(key, value)
        for key, value in batch.parts:
            written.put(key, value)
        written.put(self._checkpoint_key, batch.checkpoint)
        for key in batch.dropped:
            written.delete(key)
        self._put_tenants(written, batch.index.tenants)
        if batch.position is not None:
            self._put_position(written, batch.position, batch.index.held)
        self._database.write(written)

    def restore(self, records: Sequence[tuple[bytes, bytes | None]], position: int) -> None:
        """Apply records of the changelog, in their order; `position` is the last one's offset."""
        written = WriteBatch(raw_mode=True)
        held = self.held()
        sizes: dict[bytes, int] = {}
        more: Counter[str] = Counter()
        for key, value in records:
            if key.startswith(self._checkpoint_key):
                if value is None:
                    written.delete(key)
                else:
                    written.put(key, value)
                continue
            before = sizes[key] if key in sizes else len(self._database.get(key) or b"")
            sizes[key] = len(value or b"")
            held += (value is not None) - (before > 0)
            if (tenant := tenant_of(key)) is not None:
                more[tenant] += sizes[key] - before
            if value is None:
                for stale in (key, self._new + key, self._wait + key):
                    written.delete(stale)
                continue
            due_ms, waiting = index_stored(key, value, self._rules)
            written.put(key, value)
            written.put(self._new + key, b"")
            written.put(self._due_key(DueEntry(due_ms, key)), b"")
            if before or waiting:
                self._put_waiting(written, key, waiting)
        self._put_tenants(written, added(self.tenants(), more))
        self._put_position(written, position, held)
        self._database.write(written)

    def forget(self) -> None:
        """Delete all of the partition: the changelog restores it whole."""
        batch = WriteBatch(raw_mode=True)
        batch.delete_range(self._prefix, _after(self._prefix))
        self._database.write(batch)
        self._database.flush()

    def _due_key(self, entry: DueEntry) -> bytes:
        return self._due + max(0, entry.due_ms).to_bytes(TIME_BYTES, "big") + entry.key

    def _put_position(self, batch: WriteBatch, offset: int, held: int) -> None:
        at_s = self._clock.now().timestamp()
        batch.put(self._place, orjson.dumps([offset, at_s, held, INDEX_FORMAT]))

    def _put_tenants(self, batch: WriteBatch, tenants: Mapping[str, int]) -> None:
        for tenant, held in tenants.items():
            key = self._bytes + tenant.encode()
            if held:
                batch.put(key, str(held).encode())
            else:
                batch.delete(key)

    def _put_waiting(self, batch: WriteBatch, key: bytes, minutes: tuple[int, ...]) -> None:
        if minutes:
            batch.put(self._wait + key, orjson.dumps(minutes))
        else:
            batch.delete(self._wait + key)


def _after(prefix: bytes) -> bytes:
    """The first key after all those that begin with a prefix."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
