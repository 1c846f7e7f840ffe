"""Table store: Faust's side of the rows on disk. Recovery feeds it the changelog from its position on."""

# pyright: basic, reportMissingTypeStubs=false
# faust has no useful types.
from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from typing import Any

import structlog
from faust.stores.base import Store
from faust.types import TP

from services.aggregator.disk_rows import INDEX_FORMAT, ChangelogPosition, DiskRows
from shared.clock import Clock

log = structlog.get_logger(__name__)

TOMBSTONES_S = 12 * 3600.0
"""How old rows on disk may be: half of the time for which the changelog shows that a row was deleted
(`delete.retention.ms`). Older ones could hold rows that are gone, and are restored whole."""


class TableStore(Store):
    """Faust's store of the one table.

    Args:
        rows: the rows of a partition.
        die: ends the process. Faust only logs what a store raises, and would never end recovery.
    """

    def __init__(
        self,
        app: Any,
        table: Any,
        *,
        rows: Callable[[int], DiskRows],
        clock: Clock,
        die: Callable[[str], None],
    ) -> None:
        super().__init__("rows://", app, table)
        self._rows = rows
        self._restored = 0
        self._clock = clock
        self._die = die

    def persisted_offset(self, tp: TP) -> int | None:
        """Offset up to which the changelog is on disk; None where it must be read whole."""
        try:
            return self._position(tp.partition)
        except Exception as error:
            self._failed(error)
            raise

    def apply_changelog_batch(
        self,
        batch: Iterable[Any],
        to_key: Callable[[Any], Any],  # noqa: ARG002 keys and values are bytes
        to_value: Callable[[Any], Any],  # noqa: ARG002
    ) -> None:
        """Put records of the changelog on disk."""
        records: dict[int, list[tuple[bytes, bytes | None]]] = defaultdict(list)
        offsets: dict[int, int] = {}
        for event in batch:
            message = event.message
            records[message.partition].append((message.key, message.value))
            offsets[message.partition] = message.offset
        try:
            for partition, changes in records.items():
                self._rows(partition).restore(changes, offsets[partition])
                self._restored += len(changes)
        except Exception as error:
            self._failed(error)
            raise

    def check(self, partition: int, end: int) -> None:
        """Delete rows that are ahead of the changelog's last offset `end`, and end the process.

        They are of another changelog, as after it was made anew; the next start restores them.
        """
        position = self._rows(partition).position()
        if position is not None and position.offset > end:
            self._rows(partition).forget()
            self._die(
                f"the rows of partition {partition} were ahead of the changelog ({position.offset} "
                f"over {end}): deleted"
            )

    def restored(self) -> int:
        """Records of the changelog applied since this was last asked."""
        restored, self._restored = self._restored, 0
        return restored

    def sweep(self, partitions: Iterable[int], owned: AbstractSet[int]) -> None:
        """Delete rows of partitions that others own and that are too old to be of use."""
        for partition in partitions:
            if partition not in owned:
                self._position(partition)

    async def backup_partition(self, *_: Any, **__: Any) -> None:
        """Nothing: the changelog is the backup."""

    def restore_backup(self, *_: Any, **__: Any) -> None:
        """Nothing: see `backup_partition`."""

    def reset_state(self) -> None:
        """Nothing: an assignment decides what is read again."""

    def _position(self, partition: int) -> int | None:
        rows = self._rows(partition)
        position: ChangelogPosition | None = rows.position()
        if position is None:
            return None
        if position.index_format != INDEX_FORMAT:
            log.info("state.old_format", partition=partition, format=position.index_format)
            rows.forget()
            return None
        if self._clock.now().timestamp() - position.at_s > TOMBSTONES_S:
            log.warning("state.too_old", partition=partition, offset=position.offset)
            rows.forget()
            return None
        return position.offset

    def _failed(self, error: Exception) -> None:
        log.error("state.failed", error=str(error), exc_info=error)
        self._die(f"recovering: {error}")
