"""Agreement of a reward model with raters: accuracy, calibration, accuracy by category. Pure.

A margin is the score of the chosen answer less that of the rejected one.
"""

# pyright: strict

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

CALIBRATION_BINS = 10
DECILES = 10


def agreement(margins: Sequence[float]) -> float:
    """In how many pairs the chosen answer has the higher score; NaN of a diverged judge."""
    finite = all(map(math.isfinite, margins))
    return float(sum(margin > 0 for margin in margins)) if finite else math.nan


def predecessor_judges(figures: Mapping[str, float]) -> bool:
    """Whether the last published reward model judges a job in place of the job's own.

    It does where it agrees with more of the votes that neither learned from; of equals the job's
    own judges, as it learned from newer votes. One with a score that is no finite number never
    judges while the other has none.

    Args:
        figures: Of the `reward` stage: `judge_compared_agreed` and `judge_predecessor_agreed`, in
            how many of the same pairs each agrees; NaN, or missing, of a diverged one.

    """
    own = figures.get("judge_compared_agreed", math.nan)
    before = figures.get("judge_predecessor_agreed", math.nan)
    return math.isfinite(before) and not own >= before


def calibration_error(margins: Sequence[float]) -> float:
    """Expected calibration error in [0, 1] of the chances that Bradley-Terry gives (Guo et al. 2017).

    A pair's confidence is the larger of both answers' chances, sigmoid(|margin|) in [0.5, 1]; the
    error is the mean over ten equal bins, weighted by their pairs, of |confidence - accuracy|. NaN
    without pairs and of a diverged judge.

    Args:
        margins: Score of the chosen answer less that of the rejected one, of each pair.

    """
    if not margins or not all(map(math.isfinite, margins)):
        return math.nan
    confidences, right = [0.0] * CALIBRATION_BINS, [0] * CALIBRATION_BINS
    for margin in margins:
        confidence = 1 / (1 + math.exp(-min(abs(margin), 700.0)))
        place = min(int((confidence - 0.5) * 2 * CALIBRATION_BINS), CALIBRATION_BINS - 1)
        confidences[place] += confidence
        right[place] += margin > 0
    gaps = (abs(sure - held) for sure, held in zip(confidences, right, strict=True))
    return sum(gaps) / len(margins)


def deciles(scores: Sequence[float]) -> list[float]:
    """The nine cuts that divide scores into ten equal parts; none of few scores or a diverged judge."""
    if len(scores) < DECILES or not all(map(math.isfinite, scores)):
        return []
    return statistics.quantiles(scores, n=DECILES)


def by_category(categories: Sequence[str], margins: Sequence[float]) -> dict[str, dict[str, int]]:
    """In how many of how many tested pairs the judge agreed, by category; unnamed ones left out."""
    found: dict[str, dict[str, int]] = {}
    for category, margin in zip(categories, margins, strict=True):
        if category:
            counts = found.setdefault(category, {"agreed": 0, "tested": 0})
            counts["agreed"] += margin > 0
            counts["tested"] += 1
    return found
