"""Tenant search: rows of tenants over their budget, oldest first, a bounded part of them a batch. Pure.

A batch may hold many ticks, as after an outage; what they take texts from is one batch's to write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from services.aggregator.batch import DueEntry
from services.aggregator.rows import tenant_of

ROWS_PER_BATCH = 2_000
"""Rows that one batch takes texts from at most."""
SCANNED_PER_BATCH = 10_000
"""Index entries, of any tenant, that are read for them at most."""
AGAIN_S = 600
"""Seconds of stream time, at most, after which a search that came to the index's end begins anew:
rows that came since may be due before others that it has passed."""
EVER_MS = 2**62

DueEntries = Callable[[int, DueEntry | None], Iterator[DueEntry]]
"""See RowStore.due."""


@dataclass(slots=True)
class TenantSearch:
    """How far the search came, and what it may still do in this batch."""

    _to: dict[str, DueEntry] = field(default_factory=dict[str, DueEntry])
    """By tenant that was over its budget, the last due entry looked at."""
    _ended: set[str] = field(default_factory=set[str])
    """Tenants whose search came to the end of the index."""
    _span: int = 0
    """In which multiple of AGAIN_S it did."""
    _rows: int = ROWS_PER_BATCH
    _scanned: int = SCANNED_PER_BATCH

    def begin_batch(self) -> None:
        """Allow a batch's share of rows and entries again."""
        self._rows, self._scanned = ROWS_PER_BATCH, SCANNED_PER_BATCH

    def trim(
        self,
        over: Mapping[str, int],
        due: DueEntries,
        take: Callable[[bytes], int],
        now_s: float,
    ) -> None:
        """Take rows' texts until no tenant is over its budget or the batch has its share.

        Args:
            over: by how many bytes tenants are over it.
            due: entries of the index.
            take: takes the texts of a row; says how many bytes that gave back.
            now_s: stream time.
        """
        self._begin_anew(now_s)
        for tenant, bytes_over in over.items():
            excess = bytes_over
            for entry in due(EVER_MS, self._to.get(tenant)):
                if excess <= 0 or not self._rows or not self._scanned:
                    break
                self._scanned -= 1
                self._to[tenant] = entry
                if tenant_of(entry.key) == tenant:
                    self._rows -= 1
                    excess -= take(entry.key)
            else:
                self._ended.add(tenant)

    def _begin_anew(self, now_s: float) -> None:
        span = int(now_s // AGAIN_S)
        if span != self._span:
            self._span = span
            for tenant in self._ended:
                self._to.pop(tenant, None)
            self._ended.clear()
