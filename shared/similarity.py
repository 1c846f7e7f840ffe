"""Similarity of two sets. Pure."""

# pyright: strict
from __future__ import annotations

from collections.abc import Set as AbstractSet


def jaccard(one: AbstractSet[str], other: AbstractSet[str]) -> float:
    """Jaccard index: the share of all members that both have, in [0, 1]; 1 for two empty sets."""
    either = one | other
    return len(one & other) / len(either) if either else 1.0
