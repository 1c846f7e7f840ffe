"""Agreement of raters on nominal labels: Krippendorff's alpha, kappa, and raw agreement. Pure.

Krippendorff (2011), Computing Krippendorff's Alpha-Reliability; the interval is a percentile
bootstrap over the items (Efron and Tibshirani 1993). Kappa is Cohen's where two people labelled
(1960, Educational and Psychological Measurement 20, 37-46), and Fleiss's where each item has as many
labels (1971, Psychological Bulletin 76, 378-382).
"""

# pyright: strict
from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

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
    kappa: float | None = None
    """Cohen's or Fleiss's, as `kappa_of` says; None where neither fits."""
    kappa_of: Literal["", "cohen", "fleiss"] = ""


def agreement(labels: Iterable[RaterLabel], *, bootstraps: int = BOOTSTRAPS) -> Agreement:
    """Agreement on the items that at least two raters labelled; a rater's last label counts."""
    given: dict[str, dict[str, str]] = defaultdict(dict)
    for one in labels:
        given[one.item][one.rater] = one.label
    shared = {item: said for item, said in sorted(given.items()) if len(said) > 1}
    counts = [Counter(said.values()) for said in shared.values()]
    drawn = _bootstrapped(counts, bootstraps)
    at = len(drawn) / 40
    raters = {rater for said in shared.values() for rater in said}
    kappa: float | None = None
    kappa_of: Literal["", "cohen", "fleiss"] = ""
    if len(raters) == 2:
        first, second = sorted(raters)
        kappa_of = "cohen"
        kappa = cohen_kappa([(said[first], said[second]) for said in shared.values()])
    elif shared and len(set(map(len, shared.values()))) == 1:
        kappa_of, kappa = "fleiss", fleiss_kappa(counts)
    return Agreement(
        items=len(shared),
        raters=len(raters),
        labels=sum(map(len, shared.values())),
        alpha=krippendorff_alpha(counts),
        low=drawn[int(at)] if drawn else None,
        high=drawn[min(len(drawn) - 1, int(len(drawn) - at))] if drawn else None,
        raw=_raw(counts),
        kappa=kappa,
        kappa_of=kappa_of,
    )


def krippendorff_alpha(
    items: Sequence[Mapping[str, int]], weights: Sequence[int] | None = None
) -> float | None:
    """Alpha of items given as label -> how many raters; None where it is not defined.

    Each item counts as often as its weight says, once without weights.
    """
    values: Counter[str] = Counter()
    observed = 0.0
    for item, weight in zip(items, weights or [1] * len(items), strict=True):
        labels = sum(item.values())
        if labels > 1:
            for label, raters in item.items():
                values[label] += raters * weight
            observed += weight * _unequal(item) / (labels - 1)
    expected = _unequal(values)
    if not expected:
        return None
    return 1 - (sum(values.values()) - 1) * observed / expected


def cohen_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Kappa of two raters' labels of the same items; None where chance alone would agree."""
    if not pairs:
        return None
    firsts, seconds = (Counter(labels) for labels in zip(*pairs, strict=True))
    chance = sum(count * seconds[label] for label, count in firsts.items()) / len(pairs) ** 2
    observed = sum(first == second for first, second in pairs) / len(pairs)
    return (observed - chance) / (1 - chance) if chance < 1 else None


def fleiss_kappa(items: Sequence[Mapping[str, int]]) -> float | None:
    """Kappa of items with equally many labels each; None where chance alone would agree."""
    observed = _raw(items)
    values: Counter[str] = Counter()
    for item in items:
        values.update(item)
    chance = sum((count / values.total()) ** 2 for count in values.values()) if values else 1.0
    return (observed - chance) / (1 - chance) if observed is not None and chance < 1 else None


def _bootstrapped(items: Sequence[Counter[str]], bootstraps: int) -> list[float]:
    """Alpha of items drawn with replacement, sorted.

    Items with the same counts are one pattern: there are few of those, so a draw costs the same for
    any labels.
    """
    if not items:
        return []
    patterns: dict[tuple[tuple[str, int], ...], int] = {}
    kind_of = [patterns.setdefault(tuple(sorted(one.items())), len(patterns)) for one in items]
    kinds = [dict(pattern) for pattern in patterns]
    rng = random.Random(SEED)
    drawn: list[float] = []
    for _ in range(bootstraps):
        times = Counter(rng.choices(kind_of, k=len(kind_of)))
        value = krippendorff_alpha(kinds, [times[kind] for kind in range(len(kinds))])
        if value is not None:
            drawn.append(value)
    return sorted(drawn)


def _raw(items: Sequence[Mapping[str, int]]) -> float | None:
    pairs = sum(sum(item.values()) * (sum(item.values()) - 1) for item in items)
    return 1 - sum(map(_unequal, items)) / pairs if pairs else None


def _unequal(labels: Mapping[str, int]) -> int:
    """Ordered pairs of unequal labels."""
    return sum(labels.values()) ** 2 - sum(count * count for count in labels.values())
