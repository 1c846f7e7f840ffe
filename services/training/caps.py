"""Caps on a dataset: shares of one rater and tenant, and of good beside bad answers. Pure.

What is beyond a cap is left out by a stable hash of its name, so a rebuild leaves out the same.
"""

# pyright: strict
from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

from services.training.sides import DatasetRules, rank

EVEN_SHARES = 2
"""With so few raters that the cap is below an even share, one may have this many even shares."""

T = TypeVar("T")


def cap_shares(
    rows: Sequence[T],
    holders_of: Callable[[T], tuple[str, ...]],
    name_of: Callable[[T], str],
    share: float,
) -> list[T]:
    """Rows of which no holder has more than `share`, in their order.

    A row without a holder counts towards the whole. A row of two holders stays where both are
    below the cap.
    """
    counts = Counter(holder for row in rows for holder in holders_of(row))
    if not counts or share >= 1:
        return list(rows)
    free = sum(not holders_of(row) for row in rows)
    most = _most(sorted(counts.values()), free, max(share, EVEN_SHARES / len(counts)))
    if most >= max(counts.values()):
        return list(rows)
    had: Counter[str] = Counter()
    kept: set[int] = set()
    order = sorted(range(len(rows)), key=lambda at: (rank(name_of(rows[at])), name_of(rows[at])))
    for at in order:
        holders = holders_of(rows[at])
        if all(had[holder] < most for holder in holders):
            had.update(holders)
            kept.add(at)
    return [row for at, row in enumerate(rows) if at in kept]


def balance(
    rows: Sequence[T],
    label_of: Callable[[T], bool | None],
    name_of: Callable[[T], str],
    rules: DatasetRules,
) -> list[T]:
    """Rows of which neither label has more than `rules.label_share`; None is both at once."""
    labels: defaultdict[bool | None, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        labels[label_of(row)].append(at)
    both = len(labels[None])
    good, bad = labels[True], labels[False]
    larger, smaller = (good, bad) if len(good) >= len(bad) else (bad, good)
    # Of n rows with label, s of the smaller one: larger + both <= share * (larger + s + 2 * both).
    room = (rules.label_share * (len(smaller) + 2 * both) - both) / max(1e-9, 1 - rules.label_share)
    if rules.label_share >= 1 or len(larger) <= room:
        return list(rows)
    larger.sort(key=lambda at: (rank(name_of(rows[at])), name_of(rows[at])))
    dropped = set(larger[max(0, int(room + 1e-9)) :])
    return [row for at, row in enumerate(rows) if at not in dropped]


def _most(counts: Sequence[int], free: int, share: float) -> int:
    """The most rows of one holder, such that they are at most `share` of what is then left."""
    most = counts[-1]
    while most > 1 and most > share * (free + sum(min(count, most) for count in counts)) + 1e-9:
        most -= 1
    return most
