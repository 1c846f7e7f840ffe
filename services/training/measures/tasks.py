"""General tasks item by item: what each arm got right, and the change with its interval. Pure."""

# pyright: strict
from __future__ import annotations

import re
from collections.abc import Mapping
from statistics import NormalDist

from shared.intervals import wilson

ALPHA = 0.01
"""Chance of a false alarm over all tasks of one evaluation, at most (Bonferroni)."""
RightItems = Mapping[str, Mapping[str, bool]]
"""By task and item, whether the answer was right."""
_COUNT = re.compile(r"^capability_(.+)_(?:items|lost|won)$")


def task_figures(parent: RightItems, candidate: RightItems) -> dict[str, float]:
    """Figures of the items that both arms were asked.

    Returns:
        `capability_<task>_items`, `_parent`, `_candidate` (shares that are right), `_lost`
        (right with the parent, wrong with the candidate) and `_won`.

    """
    figures: dict[str, float] = {}
    for task in sorted(parent.keys() & candidate.keys()):
        items = parent[task].keys() & candidate[task].keys()
        pairs = [(parent[task][item], candidate[task][item]) for item in items]
        if not pairs:
            continue
        name = f"capability_{task}"
        figures |= {
            f"{name}_items": float(len(pairs)),
            f"{name}_parent": sum(before for before, _ in pairs) / len(pairs),
            f"{name}_candidate": sum(after for _, after in pairs) / len(pairs),
            f"{name}_lost": float(sum(before and not after for before, after in pairs)),
            f"{name}_won": float(sum(after and not before for before, after in pairs)),
        }
    return figures


def task_changes(figures: Mapping[str, float]) -> dict[str, float]:
    """Each task's change with a 95 % interval, and how sure its fall is.

    Of the items that changed sides, a fair coin would lose half: the interval of the share lost
    (Wilson) scaled by the share of items that changed is that of the change, conditional on it.

    Returns:
        `capability_<task>_change`, `_change_low`, `_change_high`, and `_fall`, the lower bound of
        the share lost that holds for all tasks at once; `capability_worst_fall`, the largest,
        which is missing where a task lacks a count: no data is not a pass.

    """
    found: dict[str, float] = {}
    tasks = tasks_of(figures)
    z = NormalDist().inv_cdf(1 - ALPHA / 2 / max(1, len(tasks)))
    falls: list[float] = []
    for task in tasks:
        name = f"capability_{task}"
        items, lost, won = (figures[f"{name}_{what}"] for what in ("items", "lost", "won"))
        changed = (lost + won) / max(1.0, items)
        low, high = wilson(won, lost + won)
        falls.append(wilson(lost, lost + won, z)[0])
        found |= {
            f"{name}_change": (won - lost) / max(1.0, items),
            f"{name}_change_low": (2 * low - 1) * changed,
            f"{name}_change_high": (2 * high - 1) * changed,
            f"{name}_fall": falls[-1],
        }
    if falls and len(falls) == len(_named(figures)):
        found["capability_worst_fall"] = max(falls)
    return found


def tasks_of(figures: Mapping[str, float]) -> list[str]:
    """The tasks that the figures have whole, by name."""
    return [
        name
        for name in sorted(_named(figures))
        if all(f"capability_{name}_{what}" in figures for what in ("items", "lost", "won"))
    ]


def _named(figures: Mapping[str, float]) -> set[str]:
    return {match[1] for name in figures if (match := _COUNT.match(name))}
