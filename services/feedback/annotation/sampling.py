"""Sampling of prompts from traffic: rare categories, failures and edge cases are over-weighted. Pure.

Weighted sampling without replacement by Efraimidis and Spirakis (2006, Information Processing Letters
97, 181-185): each prompt draws u ** (1 / weight), and the highest win.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from shared.contracts.events.base import Message

FAILING_WEIGHT = 3.0
EDGE_WEIGHT = 2.0
EDGE = 0.05
"""Share of prompts at each end of the lengths that are edge cases."""


@dataclass(frozen=True, slots=True)
class TrafficPrompt:
    """A conversation that somebody asked, redacted."""

    messages: tuple[Message, ...]
    category: str
    failing: bool
    """The request failed, its answer was truncated, or people disliked it."""
    asker: str = ""
    """User id as it is stored."""

    @property
    def length(self) -> int:
        """Characters of all turns."""
        return sum(len(turn.content) for turn in self.messages)


def sample(prompts: Sequence[TrafficPrompt], count: int, rng: random.Random) -> list[TrafficPrompt]:
    """At most `count` prompts; every category has the same total weight before the other two rules."""
    in_category = Counter(prompt.category for prompt in prompts)
    lengths = sorted(prompt.length for prompt in prompts)
    low, high = _edges(lengths)

    def key(prompt: TrafficPrompt) -> float:
        weight = 1 / in_category[prompt.category]
        weight *= FAILING_WEIGHT if prompt.failing else 1.0
        weight *= 1.0 if low <= prompt.length <= high else EDGE_WEIGHT
        # The logarithm of u ** (1 / weight), which itself would underflow.
        return math.log(1 - rng.random()) / weight

    return sorted(prompts, key=key, reverse=True)[:count]


def _edges(lengths: Sequence[int]) -> tuple[int, int]:
    """The lengths between which a prompt is no edge case, of lengths in order."""
    if not lengths:
        return 0, 0
    place = int(EDGE * len(lengths))
    return lengths[place], lengths[-1 - place]
