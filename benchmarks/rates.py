"""Rates of a reader: marks of its progress, and the slope between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressMark:
    """So many events after so much wall and processor time, both in seconds."""

    seen: int
    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Rate:
    """Events a second by the wall clock and by the reader's own processor time."""

    wall: float
    cpu: float


def slope(marks: Sequence[ProgressMark], total: int) -> Rate:
    """Events a second between the first and the last tenth."""
    inner = [mark for mark in marks if 0.1 * total <= mark.seen <= 0.95 * total]
    if len(inner) < 2:
        inner = list(marks)
    first, last = inner[0], inner[-1]
    seen = last.seen - first.seen
    return Rate(
        seen / max(last.wall_s - first.wall_s, 1e-6), seen / max(last.cpu_s - first.cpu_s, 1e-6)
    )
