"""What one more vote on two versions tells of the ranking. Pure."""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from shared.ranking.bradley_terry import Row, chance, covariance, fit, versus


def gains(
    versions: Sequence[str], wins: Mapping[tuple[str, str], float]
) -> dict[tuple[str, str], float]:
    """What one more vote on each pair of versions tells of the ranking.

    That is p (1 - p) of the pair's next outcome times the variance of its difference of strengths,
    both from the posterior's normal approximation: how far the vote lowers the variance, to the first
    order (Glickman and Jensen 2005, Journal of Statistical Planning and Inference 127, 279-293).
    `wins` has how often the first of two versions won over the second; a tie is half of each.
    """
    place = {version: index for index, version in enumerate(versions)}
    rows: list[Row] = [
        (versus(place[first], place[second]), 1.0, won)
        for (first, second), won in wins.items()
        if first in place and second in place and first != second
    ]
    strengths = fit(rows, [0.0] * len(versions))
    spread = covariance(rows, strengths)
    found: dict[tuple[str, str], float] = {}
    for i, j in combinations(range(len(versions)), 2):
        first_wins = chance(versus(i, j), strengths)
        variance = spread[i][i] + spread[j][j] - 2 * spread[i][j]
        found[versions[i], versions[j]] = first_wins * (1 - first_wins) * variance
    return found
