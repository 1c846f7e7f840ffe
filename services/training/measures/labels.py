"""Precision, recall and F1 of labels that answers name. Pure."""

# pyright: strict
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True, slots=True)
class LabelScores:
    """Macro averages over the labels that are expected at least once, each in [0, 1].

    A label that is never named has precision 0. F1 is the mean of the labels' own.
    """

    precision: float
    recall: float
    f1: float


def named_label(answer: str, labels: Sequence[str]) -> str:
    """The label that an answer names first, as a whole word in any case; empty where none."""
    places = [
        (match.start(), -len(label), label)
        for label in labels
        if (match := re.search(rf"(?<!\w){re.escape(label)}(?!\w)", answer, re.IGNORECASE))
    ]
    return min(places)[2] if places else ""


def label_scores(expected: Sequence[str], named: Sequence[str]) -> LabelScores:
    """Scores of named labels against expected ones, of the same length and at least one.

    Raises:
        ValueError: the lengths differ, or there is nothing to score.

    """
    if not expected:
        raise ValueError("expected: no labels")
    pairs = list(zip(expected, named, strict=True))
    found: list[tuple[float, float, float]] = []
    for label in sorted(set(expected)):
        hits = sum(one == other == label for one, other in pairs)
        said, wanted = named.count(label), expected.count(label)
        found.append((hits / said if said else 0.0, hits / wanted, 2 * hits / (said + wanted)))
    precision, recall, f1 = (fmean(column) for column in zip(*found, strict=True))
    return LabelScores(precision, recall, f1)
