"""Rows that a machine made or labelled: where they may be, and how many. Pure.

`synthetic` is a pair of moderated generation, `ai` one that an AI judge labelled (RLAIF, Lee et al.
2023), `augmented` one whose prompt was varied. They train, within a share; what is held out and what
the judge learns from is people's alone, and so is every category in `people_only`.
"""

# pyright: strict
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from services.training.dataset_rows import AboutPrompt
from services.training.sides import DatasetRules, is_held_out, is_prompt_of_judge, rank
from shared.contracts.row_sources import AI, AUGMENTED

A = TypeVar("A", bound=AboutPrompt)


def people_made(rows: Sequence[A], refused: Counter[str]) -> list[A]:
    """Rows that people made, for the sides that measure; `refused` counts the others."""
    kept = [row for row in rows if not row.machine_made]
    refused["machine_made_set_apart"] += len(rows) - len(kept)
    return kept


def within_shares(
    rows: Sequence[A], name_of: Callable[[A], str], rules: DatasetRules, refused: Counter[str]
) -> list[A]:
    """Rows to train on, with no more of machines than the rules allow beside those of people.

    An augmented row goes where its original is held out or the judge's: it would teach what is
    asked. Which rows go beyond a share, a hash of their names decides.
    """
    kept = [row for row in rows if not _leaks(row, rules)]
    refused["augmented_of_held_out"] += len(rows) - len(kept)
    people = sum(row.source not in {AI, AUGMENTED} for row in kept)
    for source, share in ((AI, rules.ai_share), (AUGMENTED, rules.augmented_share)):
        mine = [row for row in kept if row.source == source]
        others = people if source == AI else len(kept) - len(mine)
        most = len(mine) if share >= 1 else int(share * others / (1 - share) + 1e-9)
        order = sorted(mine, key=lambda row: (rank(name_of(row)), name_of(row)))
        beyond = {name_of(row) for row in order[most:]}
        refused[f"{source}_share"] += len(beyond)
        kept = [row for row in kept if row.source != source or name_of(row) not in beyond]
    return kept


def _leaks(row: AboutPrompt, rules: DatasetRules) -> bool:
    origin = row.meta.get("origin", "") if row.source == AUGMENTED else ""
    return bool(origin) and (is_held_out(origin, rules) or is_prompt_of_judge(origin, rules))
