"""Over-optimisation: whether the score that a policy raises and an independent judge's part. Pure.

A policy that games its reward model goes on rising by it and falls by a judge that never trained
it (Gao et al. 2023).
"""

# pyright: strict
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shared.intervals import ONE_SIDED_95

PATIENCE = 2
"""Checks in a row that must find both scores parted: one may be chance."""


@dataclass(frozen=True)
class Check:
    """Both scores of each prompt's answer at a step."""

    step: int
    proxy: list[float]
    judge: list[float]


def parted(history: Sequence[Check]) -> bool:
    """Whether the last checks all found the judge's score fallen and the proxy's not.

    Fallen: below that of the best check by more than chance, by the paired differences of its
    prompts (one-sided, 95 %).
    """
    top = best(history)
    latest = history[-PATIENCE:]
    return len(latest) == PATIENCE and all(
        mean(one.proxy) >= mean(top.proxy) and _fallen(top.judge, one.judge) for one in latest
    )


def best(history: Sequence[Check]) -> Check:
    """The check that the judge liked best, the first of equals."""
    return max(history, key=lambda one: mean(one.judge))


def _fallen(before: Sequence[float], now: Sequence[float]) -> bool:
    falls = [old - new for old, new in zip(before, now, strict=True)]
    fallen = mean(falls)
    error = math.sqrt(mean([(fall - fallen) ** 2 for fall in falls]) / len(falls))
    return fallen > ONE_SIDED_95 * error


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    return sum(values) / len(values)
