"""Batch: what a partition folded since its last checkpoint, in the order in which it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from services.aggregator.aggregates import Part
from services.aggregator.fold import Output
from services.aggregator.rows import checkpoint_key


class DueEntry(NamedTuple):
    """A row that may expire at a moment of stream time, in milliseconds."""

    due_ms: int
    key: bytes


@dataclass(slots=True)
class IndexChanges:
    """Changes of the row store's indexes; they are no part of the changelog."""

    looked: list[DueEntry] = field(default_factory=list[DueEntry])
    """Entries that are done with; removed before the others are added."""
    due: list[DueEntry] = field(default_factory=list[DueEntry])
    waiting: dict[bytes, tuple[int, ...]] = field(default_factory=dict[bytes, tuple[int, ...]])
    """Minutes in which the feedback came that waits in a row; empty where none does any more."""
    held: int = 0
    """How many rows the partition has now."""
    tenants: dict[str, int] = field(default_factory=dict[str, int])
    """Bytes that tenants hold now, of those whose bytes changed (see tenant_budget)."""


@dataclass(slots=True)
class Batch:
    """What was folded since the last batch, ready to be written in this order."""

    partition: int
    outputs: list[Output]
    rows: list[tuple[bytes, bytes]]
    checkpoint: bytes
    """Its head."""
    dropped: list[bytes]
    """Keys of rows and parts to delete; not before the checkpoint, for a replay must still find them."""
    offsets: dict[str, int]
    index: IndexChanges = field(default_factory=IndexChanges)
    parts: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])
    """The checkpoint's parts that changed, before its head."""
    changed: Mapping[Part, bytes | None] = field(default_factory=dict[Part, "bytes | None"])
    """The same by part; None is one of which nothing is left."""
    position: int | None = None
    """Offset of the checkpoint on the changelog, once it is written."""

    @property
    def checkpoint_key(self) -> bytes:
        """Key of the checkpoint on the changelog."""
        return checkpoint_key(self.partition)
