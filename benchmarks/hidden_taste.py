"""Hidden taste of simulated raters over the starter corpus's answers, its signs drawn by seed."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

from deploy.starter import corpus

TRAITS = ("polite", "concrete", "short", "rambling")
LONG_WORDS = 20
"""Words of a long answer of the corpus."""


@dataclass(frozen=True)
class HiddenTaste:
    """How much each trait of an answer is liked, or disliked."""

    likes: Mapping[str, float]

    @classmethod
    def drawn(cls, seed: int) -> HiddenTaste:
        """The taste of a seed; rambling is disliked by everyone."""
        chance = random.Random(f"taste/{seed}")
        likes = {name: chance.choice((-1, 1)) * chance.uniform(0.5, 1.5) for name in TRAITS}
        return cls({**likes, "rambling": -abs(likes["rambling"])})

    def utility(self, answer: str) -> float:
        """How much an answer is liked; only differences mean something."""
        polite = any(text in answer for text in (*corpus.POLITE_OPENINGS, *corpus.POLITE_CLOSINGS))
        blunt = any(text in answer for text in (*corpus.BLUNT_OPENINGS, *corpus.BLUNT_CLOSINGS))
        return (
            self.likes["polite"] * (polite - blunt)
            + self.likes["concrete"] * any(sign.isdigit() for sign in answer)
            - self.likes["short"] * min(2.0, len(answer.split()) / LONG_WORDS)
            + self.likes["rambling"] * sum(text in answer for text in corpus.RAMBLINGS)
        )


def prefers(margin: float, sharpness: float, chance: random.Random) -> bool:
    """Whether a rater votes for the answer that is better by so much (Bradley-Terry)."""
    return chance.random() < 1 / (1 + math.exp(-sharpness * margin))
