"""One model's pairs and unpaired prompts, folded from `preferences.v1`; many of them are on disk."""

# pyright: strict
from __future__ import annotations

import pickle
from collections.abc import Collection, Iterator
from typing import TypeVar, cast

from services.training.dataset_rows import LabelledAnswer, Pair, answer_of, pair_of
from services.training.spill import SPILL_ROWS, SpilledTable
from shared.contracts.events.base import Event
from shared.contracts.events.preferences import (
    PreferencePair,
    PreferenceRetracted,
    UnpairedExample,
)

W = TypeVar("W", Pair, LabelledAnswer)


class PreferenceFold:
    """One model's pairs and unpaired prompts, as the log's last word on each has it."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._pairs = SpilledTable[str]()
        self._answers = SpilledTable[str]()
        """Pickled rows by id."""
        self._closed: set[str] = set()
        """Ids of those whose key is destroyed: their texts are empty, and their retraction comes."""
        self.retracted = 0

    def apply(self, event: Event) -> None:
        """Fold one event of `preferences.v1`, in the order of its partition."""
        match event:
            case PreferencePair() | UnpairedExample() if event.encrypted is not None:
                if event.model == self._model:
                    self._pairs.pop(event.pair_id)
                    self._answers.pop(event.pair_id)
                    self._closed.add(event.pair_id)
            case PreferencePair() if event.model == self._model:
                self._pairs.put(event.pair_id, pickle.dumps(pair_of(event)))
            case UnpairedExample() if event.model == self._model:
                self._answers.put(event.pair_id, pickle.dumps(answer_of(event)))
            case PreferenceRetracted():
                known = self._pairs.pop(event.pair_id)
                answer = self._answers.pop(event.pair_id)
                closed = event.pair_id in self._closed
                self._closed.discard(event.pair_id)
                self.retracted += known or answer or closed
            case _:
                pass

    @property
    def pairs(self) -> Collection[Pair]:
        """All pairs that stand, by id."""
        return _standing(_StandingRows[Pair](self._pairs))

    @property
    def answers(self) -> Collection[LabelledAnswer]:
        """Unpaired examples that stand, by id."""
        return _standing(_StandingRows[LabelledAnswer](self._answers))


def _standing(rows: Collection[W]) -> Collection[W]:
    return list(rows) if len(rows) <= SPILL_ROWS else rows


class _StandingRows(Collection[W]):
    """Pickled rows of a table."""

    def __init__(self, table: SpilledTable[str]) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[W]:
        for data in self._table.values():
            yield cast("W", pickle.loads(data))  # noqa: S301 - nobody else can write the table

    def __contains__(self, row: object) -> bool:
        return any(row == one for one in self)
