"""Confidence intervals of shares. Pure."""

# pyright: strict
from __future__ import annotations

import math

Z95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""
Z99 = 2.5758293035489004


def wilson(successes: float, trials: float, z: float = Z95) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927, JASA 22, 209-212); (0, 1) without trials."""
    if trials <= 0:
        return (0.0, 1.0)
    share = successes / trials
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    centre = share + z * z / (2 * trials)
    scale = 1 + z * z / trials
    return (max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale))
