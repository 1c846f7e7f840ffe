"""Information of a vote on a prompt: unsure between two different answers, and unlike the others. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import NamedTuple

from shared.similarity import jaccard

COMPARED_WORDS = 400
"""Of each answer: comparison takes time by the square, in one piece, and answers that differ do so
early."""

DRAWN_SHARE = 0.25
"""Of comparisons, those on any prompt and any two answers, so that what tells little is asked, too."""


class Score(NamedTuple):
    """A reward model's score of an answer."""

    value: float
    uncertainty: float = 0.0
    """Standard deviation of the heads' scores; 0 of a reward model with one head."""


@dataclass(frozen=True, slots=True)
class AnsweredTwice:
    """A prompt with the answers of two versions and their scores by a reward model."""

    text: str
    answers: tuple[str, str]
    scores: tuple[Score, Score]


def information(prompt: AnsweredTwice) -> float:
    """How much a vote would tell, in [0, 1].

    4p(1-p), where p is the chance that the first answer wins (Bradley-Terry): 1 where the reward
    model cannot tell, 0 where it is sure. Heads that disagree bring p nearer to one half: it is the
    mean over a normal margin, by MacKay's approximation (1992). Times the share of
    words in which the answers differ: between equal answers there is nothing to choose.
    """
    first_score, second_score = prompt.scores
    variance = first_score.uncertainty**2 + second_score.uncertainty**2
    margin = (first_score.value - second_score.value) / math.sqrt(1 + math.pi * variance / 8)
    margin = max(-700.0, min(700.0, margin))
    chance = 1 / (1 + math.exp(-margin))
    first, second = (text.split()[:COMPARED_WORDS] for text in prompt.answers)
    alike = SequenceMatcher(None, first, second, autojunk=False).ratio()
    return 4 * chance * (1 - chance) * (1 - alike)


def diversified(prompts: Sequence[AnsweredTwice]) -> list[tuple[str, float]]:
    """Prompts from the first to ask on, each with what it adds to those before it, in [0, 1].

    Greedy maximal marginal relevance (Carbonell and Goldstein 1998): its information, times how
    far its words are from the nearest prompt before it (one less their Jaccard index).
    """
    left = {one.text: (information(one), _words(one.text)) for one in prompts}
    nearest = dict.fromkeys(left, 0.0)
    found: list[tuple[str, float]] = []
    while left:
        gains = {text: value * (1 - nearest[text]) for text, (value, _) in left.items()}
        best = max(gains, key=lambda text: (gains[text], text))
        _, words = left.pop(best)
        found.append((best, gains[best]))
        for text, (_, others) in left.items():
            nearest[text] = max(nearest[text], jaccard(words, others))
    return found


def _words(text: str) -> frozenset[str]:
    return frozenset(text.lower().split())
