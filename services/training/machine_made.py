"""Rows that a machine made or labelled: where they may be, and how many. Pure.

`synthetic` is a pair of moderated generation, `ai` one that an AI judge labelled (RLAIF, Lee et al.
2023), `augmented` one whose prompt was varied. They train, within a share; what is held out and what
the judge learns from is people's alone, and so is every category in `people_only`.
"""

# pyright: strict
from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

from services.training.sides import DatasetRules, is_held_out, is_prompt_of_judge, rank
from services.training.spill import SpilledTable, keep, sorted_rows
from shared.contracts.row_sources import AI, AUGMENTED


class SourcedRow(Protocol):
    """A row that says where it is from."""

    @property
    def name(self) -> str:
        """Its id."""
        ...

    @property
    def source(self) -> str:
        """Where it is from."""
        ...

    @property
    def machine_made(self) -> bool:
        """Whether a machine made or labelled it."""
        ...

    @property
    def meta(self) -> Mapping[str, str]:
        """What is known of it."""
        ...


A = TypeVar("A", bound=SourcedRow)


def people_made(rows: Collection[A], refused: Counter[str]) -> Collection[A]:
    """Rows that people made, for the sides that measure; `refused` counts the others."""
    kept = keep(rows, lambda row: not row.machine_made)
    refused["machine_made_set_apart"] += len(rows) - len(kept)
    return kept


def within_shares(rows: Collection[A], rules: DatasetRules, refused: Counter[str]) -> Collection[A]:
    """Rows to train on, with no more of machines than the rules allow beside those of people.

    An augmented row goes where its original is held out or the judge's: it would teach what is
    asked. Which rows go beyond a share, a hash of their names decides.
    """
    kept = keep(rows, lambda row: not _leaks(row, rules))
    refused["augmented_of_held_out"] += len(rows) - len(kept)
    people = sum(row.source not in {AI, AUGMENTED} for row in kept)
    for source, share in ((AI, rules.ai_share), (AUGMENTED, rules.augmented_share)):
        mine = sum(row.source == source for row in kept)
        others = people if source == AI else len(kept) - mine
        most = mine if share >= 1 else int(share * others / (1 - share) + 1e-9)
        if mine > most:
            beyond = _beyond(kept, source, most)
            refused[f"{source}_share"] += len(beyond)
            kept = keep(kept, partial(_is_within, source=source, beyond=beyond))
    return kept


def _beyond(rows: Collection[SourcedRow], source: str, most: int) -> SpilledTable[str]:
    names = (row.name for row in rows if row.source == source)
    order = sorted_rows(names, lambda name: (rank(name), name))
    beyond = SpilledTable[str]()
    for name in islice(order, most, None):
        beyond.add(name)
    return beyond


def _is_within(row: SourcedRow, *, source: str, beyond: SpilledTable[str]) -> bool:
    return row.source != source or row.name not in beyond


def _leaks(row: SourcedRow, rules: DatasetRules) -> bool:
    origin = row.meta.get("origin", "") if row.source == AUGMENTED else ""
    return bool(origin) and (is_held_out(origin, rules) or is_prompt_of_judge(origin, rules))
