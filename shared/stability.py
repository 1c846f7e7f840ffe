"""Population stability index: how far a distribution over bins has moved. Pure."""

# pyright: strict
from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TypeVar

from shared.intervals import ONE_SIDED_95

Bin = TypeVar("Bin", bound=Hashable)

FEW = 0.5
"""Counts that a bin has at least, so that an empty one does not make the index infinite."""


def stability_index(before: Mapping[Bin, int], now: Mapping[Bin, int]) -> float:
    """Population stability index, sum of (q - p) · ln(q / p) over bins, less what chance gives.

    Below 0.1 counts as still, above 0.2 as moved (Siddiqi 2006). Of two samples of n and m from one
    distribution over B bins it is about (1/n + 1/m) times a chi-square of B - 1 degrees of freedom
    (Yurdakul 2018); what that reaches in 95 % is taken off, so few of them alone never count as moved.
    """
    bins = before.keys() | now.keys()
    sizes = sum(before.values()), sum(now.values())
    found = 0.0
    for one in bins:
        p = max(before.get(one, 0), FEW) / sizes[0]
        q = max(now.get(one, 0), FEW) / sizes[1]
        found += (q - p) * math.log(q / p)
    freedom = len(bins) - 1
    chance = (freedom + ONE_SIDED_95 * math.sqrt(2 * freedom)) * (1 / sizes[0] + 1 / sizes[1])
    return max(0.0, found - chance)
