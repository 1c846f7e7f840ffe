"""Agreement of raters: Krippendorff's alpha for nominal labels, its interval, and raw agreement. Pure.

Krippendorff (2011), Computing Krippendorff's Alpha-Reliability; the interval is a percentile
bootstrap over the items (Efron and Tibshirani 1993).
"""

# pyright: strict
from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

BOOTSTRAPS = 1000
SEED = 20_260_302
"""The same labels always give the same interval."""


@dataclass(frozen=True, slots=True)
class RaterLabel:
    """What one rater said of one item."""

    item: str
    rater: str
    label: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far raters agree on items that several of them labelled."""

    items: int
    raters: int
    labels: int
    alpha: float | None
    """1: they agree; 0: as by chance; None where all labels are the same or no item has two."""
    low: float | None
    high: float | None
    """95 % interval of alpha."""
    raw: float | None
    """Share of pairs of labels of one item that are equal."""


def agreement(labels: Iterable[RaterLabel], *, bootstraps: int = BOOTSTRAPS) -> Agreement:
    """Agreement on the items that at least two raters labelled; a rater's last label counts."""
    given: dict[str, dict[str, str]] = defaultdict(dict)
    for one in labels:
        given[one.item][one.rater] = one.label
    shared = {item: said for item, said in sorted(given.items()) if len(said) > 1}
    counts = [Counter(said.values()) for said in shared.values()]
    rng = random.Random(SEED)
    drawn = sorted(
        value
        for _ in range(bootstraps if counts else 0)
        if (value := krippendorff_alpha(rng.choices(counts, k=len(counts)))) is not None
    )
    at = len(drawn) / 40
    return Agreement(
        items=len(shared),
        raters=len({rater for said in shared.values() for rater in said}),
        labels=sum(map(len, shared.values())),
        alpha=krippendorff_alpha(counts),
        low=drawn[int(at)] if drawn else None,
        high=drawn[min(len(drawn) - 1, int(len(drawn) - at))] if drawn else None,
        raw=_raw(counts),
    )


def krippendorff_alpha(items: Sequence[Mapping[str, int]]) -> float | None:
    """Alpha of items given as label -> how many raters; None where it is not defined."""
    values: Counter[str] = Counter()
    observed = 0.0
    for item in items:
        labels = sum(item.values())
        if labels > 1:
            values.update(item)
            observed += _unequal(item) / (labels - 1)
    expected = _unequal(values)
    if not expected:
        return None
    return 1 - (sum(values.values()) - 1) * observed / expected


def _raw(items: Sequence[Mapping[str, int]]) -> float | None:
    pairs = sum(sum(item.values()) * (sum(item.values()) - 1) for item in items)
    return 1 - sum(map(_unequal, items)) / pairs if pairs else None


def _unequal(labels: Mapping[str, int]) -> int:
    """Ordered pairs of unequal labels."""
    return sum(labels.values()) ** 2 - sum(count * count for count in labels.values())
