"""Confidence intervals of shares. Pure."""

# pyright: strict
from __future__ import annotations

import math

TWO_SIDED_95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval: 0.975."""
TWO_SIDED_99 = 2.5758293035489004
ONE_SIDED_95 = 1.6448536269514722
"""Standard normal quantile of a one-sided 95 % bound: 0.95."""


def wilson(successes: float, trials: float, z: float = TWO_SIDED_95) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927, JASA 22, 209-212); (0, 1) without trials."""
    if trials <= 0:
        return (0.0, 1.0)
    share = successes / trials
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    centre = share + z * z / (2 * trials)
    scale = 1 + z * z / trials
    return (max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale))


def difference(
    first: tuple[float, float], second: tuple[float, float], z: float = TWO_SIDED_95
) -> tuple[float, float]:
    """Interval of a difference of two shares (Newcombe 1998, Stat. Med. 17, 873-890, no. 10).

    Args:
        first: Successes and trials; at least one trial.
        second: Likewise.
        z: Standard normal quantile of the interval.

    """
    one, other = first[0] / first[1], second[0] / second[1]
    low, high = wilson(*first, z)
    other_low, other_high = wilson(*second, z)
    gap = one - other
    return (
        gap - math.hypot(one - low, other_high - other),
        gap + math.hypot(high - one, other - other_low),
    )
