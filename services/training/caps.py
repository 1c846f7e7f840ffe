"""Caps on a dataset: shares of one rater and tenant, and of good beside bad answers. Pure.

What is beyond a cap is left out by a stable hash of its name, so a rebuild leaves out the same.
"""

# pyright: strict
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import TypeVar

from services.training.sides import DatasetRules, rank
from services.training.spill import keep, sorted_rows

EVEN_SHARES = 2
"""With so few raters that the cap is below an even share, one may have this many even shares."""

T = TypeVar("T")


def cap_shares(
    rows: Collection[T],
    holders_of: Callable[[T], tuple[str, ...]],
    name_of: Callable[[T], str],
    share: float,
) -> Collection[T]:
    """Rows of which no holder has more than `share`, in their order.

    A row without a holder counts towards the whole. A row of two holders stays where both are
    below the cap.
    """
    counts = Counter(holder for row in rows for holder in holders_of(row))
    if not counts or share >= 1:
        return rows
    free = sum(not holders_of(row) for row in rows)
    most = _most(sorted(counts.values()), free, max(share, EVEN_SHARES / len(counts)))
    if most >= max(counts.values()):
        return rows
    had: Counter[str] = Counter()
    kept = bytearray(len(rows))
    places = ((name_of(row), at, holders_of(row)) for at, row in enumerate(rows))
    for _, at, holders in sorted_rows(places, lambda place: (rank(place[0]), *place[:2])):
        if all(had[holder] < most for holder in holders):
            had.update(holders)
            kept[at] = True
    marks = iter(kept)
    return keep(rows, lambda _: bool(next(marks)))


def balance(
    rows: Collection[T],
    label_of: Callable[[T], bool | None],
    name_of: Callable[[T], str],
    rules: DatasetRules,
) -> Collection[T]:
    """Rows of which neither label has more than `rules.label_share`; None is both at once."""
    labels = Counter(map(label_of, rows))
    both = labels[None]
    more = labels[True] >= labels[False]
    larger, smaller = labels[more], labels[not more]
    # Of n rows with label, s of the smaller one: larger + both <= share * (larger + s + 2 * both).
    room = (rules.label_share * (smaller + 2 * both) - both) / max(1e-9, 1 - rules.label_share)
    if rules.label_share >= 1 or larger <= room:
        return rows
    places = ((name_of(row), at) for at, row in enumerate(rows) if label_of(row) is more)
    order = sorted_rows(places, lambda place: (rank(place[0]), *place))
    dropped = bytearray(len(rows))
    for _, at in islice(order, max(0, int(room + 1e-9)), None):
        dropped[at] = True
    marks = iter(dropped)
    return keep(rows, lambda _: not next(marks))


def _most(counts: Sequence[int], free: int, share: float) -> int:
    """The most rows of one holder, such that they are at most `share` of what is then left."""
    most = counts[-1]
    while most > 1 and most > share * (free + sum(min(count, most) for count in counts)) + 1e-9:
        most -= 1
    return most
