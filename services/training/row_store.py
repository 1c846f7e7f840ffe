"""Rows on disk while a dataset is selected: what decides on a row is read apart from its texts."""

# pyright: strict
from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar, cast

from services.training.dataset_rows import Demonstration, LabelledAnswer, Pair
from services.training.sides import digest, rank
from services.training.spill import ScratchFile, spilled
from shared.contracts.row_sources import MACHINE_MADE

AnyRow = Pair | LabelledAnswer | Demonstration
W = TypeVar("W", Pair, LabelledAnswer, Demonstration)


class RowFinding(NamedTuple):
    """What a row's texts say to the checks, so that they are read once."""

    refusal: str | None
    """Why the row alone is not trained on, or None."""
    question: bytes = b""
    """Digest of what may be in a dataset once."""
    preferred: bytes = b""
    """Digest of the better of two answers."""


class RowKey(NamedTuple):
    """What decides on a row; the row itself is in the store.

    A tuple, as each stage reads all of them back: a dataclass takes four times as long to unpickle.
    """

    name: str
    prompt_digest: bytes
    prompt_rank: float
    meta: Mapping[str, str]
    raters: tuple[str, ...]
    panel: str
    tenant: str
    chosen_side: str
    label: bool | None
    asks: bool
    """Whether the row has a prompt at all."""
    finding: RowFinding
    place: int
    size: int

    @property
    def source(self) -> str:
        """Where the row is from."""
        return self.meta.get("source", "")

    @property
    def machine_made(self) -> bool:
        """Whether a machine made or labelled the row, not a person."""
        return self.source in MACHINE_MADE


class SelectedRows:
    """Rows in a file without a name, and their keys. It must outlive the keys' use."""

    def __init__(self) -> None:
        self._file = ScratchFile()

    def keep(self, rows: Iterable[W], find: Callable[[W], RowFinding]) -> Collection[RowKey]:
        """Store rows, one at a time; returns their keys in order.

        Raises:
            DiskFull: there is no room.

        """
        return spilled(self._kept(rows, find))

    def whole(self, key: RowKey) -> AnyRow:
        """The row of a key."""
        data = self._file.read(key.place, key.size)
        return cast("AnyRow", pickle.loads(data))  # noqa: S301 - nobody else can write the file

    def _kept(self, rows: Iterable[W], find: Callable[[W], RowFinding]) -> Iterator[RowKey]:
        for row in rows:
            finding, prompt, data = find(row), row.prompt, b""
            if finding.refusal is None:  # others are counted, and never read again
                data = pickle.dumps(row, pickle.HIGHEST_PROTOCOL)
            yield RowKey(
                name=row.name,
                prompt_digest=digest(prompt),
                prompt_rank=rank(prompt),
                meta=row.meta,
                raters=() if isinstance(row, Demonstration) else row.raters,
                panel="" if isinstance(row, Demonstration) else row.panel,
                tenant=row.tenant,
                chosen_side=row.chosen_side if isinstance(row, Pair) else "",
                label=None if isinstance(row, Demonstration) else row.label,
                asks=bool(row.messages),
                finding=finding,
                place=self._file.append(data),
                size=len(data),
            )
