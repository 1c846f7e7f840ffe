"""Simulated users' hidden tastes: what they like, how noisily they say so.

A taste reads the two texts and nothing else: no style label of the corpus, no version, no token
count of the engine. Only the demo's users and its closing table may ask it; training, evaluation
and the judge never see it (import-linter keeps `demo` out of `services`).
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from typing import Literal

from deploy.starter import corpus
from deploy.starter.topics import TOPICS

Verdict = Literal["left", "right", "tie", "both_bad"]

CROWD = 600
"""Simulated people in one population."""
CARELESS_SHARE = 0.08
"""Share of people who vote without reading."""
OWN_MIND = 0.45
"""Standard deviation of a person's weights around the crowd's."""

_POLITE = re.compile(
    r"\b(thank|thanks|happy to|glad|sorry|kindly|please|good day|welcome)\b", re.IGNORECASE
)
_BLUNT = re.compile(
    r"\b(obviously|not again|deal with it|read the page|that is all)\b",
    re.IGNORECASE,
)
_HEDGES = re.compile(
    r"\b(depends|varies|usually|somehow|several things|a lot to say)\b", re.IGNORECASE
)
_CONCRETE = re.compile(r"\b\d+\b|\b(open|press|hold|unplug|remove|print)\b", re.IGNORECASE)
_NOUNS = re.compile(
    r"\b(" + "|".join(sorted(topic.noun for topic in TOPICS)) + r")(?:s|es)?\b", re.IGNORECASE
)
_TYPICAL_SEED = 20_000


@dataclass(frozen=True)
class Features:
    """What a reader notices in an answer, each in [-1, 1]."""

    tone: float
    relevance: float
    concreteness: float
    brevity: float
    stopping: float

    def values(self) -> tuple[float, ...]:
        """In the order of `Taste.weights`."""
        return (self.tone, self.relevance, self.concreteness, self.brevity, self.stopping)


def notice(prompt: str, answer: str) -> Features:
    """Reads an answer as a person would: tone, subject, facts, length, and whether it ends."""
    text = answer.strip()
    if not text:
        return Features(0.0, -1.0, -1.0, 1.0, -1.0)
    sentences = [part.strip().lower() for part in re.split(r"(?<=[.!?])\s+", text) if part.strip()]
    polite, blunt = len(_POLITE.findall(text)), len(_BLUNT.findall(text))
    asked = {noun.lower() for noun in _NOUNS.findall(prompt)}
    told = [noun.lower() for noun in _NOUNS.findall(text)]
    # A person told about something else feels it even when the right word falls once, in passing.
    share = sum(noun in asked for noun in told) / len(told) if told else 0.0
    hedges, facts = len(_HEDGES.findall(text)), len(_CONCRETE.findall(text))
    repeated = len(sentences) - len(set(sentences))
    finished = text[-1] in ".!?"
    words = len(text.split())
    return Features(
        tone=math.tanh(polite - blunt),
        relevance=2.0 * share - 1.0,
        concreteness=math.tanh(0.7 * (facts - 2 * hedges)) if facts or hedges else -0.5,
        brevity=max(-1.0, min(1.0, (20 - words) / 12)),
        stopping=1.0 if finished and repeated == 0 else -1.0,
    )


@dataclass(frozen=True)
class Taste:
    """One person's hidden utility: a weighted sum of features, minus what they expect."""

    weights: tuple[float, ...]
    expectation: float = 0.0

    def utility(self, prompt: str, answer: str) -> float:
        """How much this person likes the answer; 0 is what they are used to."""
        features = notice(prompt, answer).values()
        score = sum(w * f for w, f in zip(self.weights, features, strict=True))
        return score - self.expectation


@dataclass(frozen=True)
class Person:
    """A simulated user. `careless` people answer without reading."""

    name: str
    taste: Taste
    careless: bool

    def compare(self, prompt: str, left: str, right: str, rng: random.Random) -> Verdict:
        """A vote between two answers, with Bradley-Terry noise (Bradley & Terry 1952).

        Two answers nobody could tell apart are a tie, two that both disappoint are both bad.
        """
        if self.careless:
            return rng.choice(("left", "right"))
        if left.strip() == right.strip():
            return "tie"
        a, b = self.taste.utility(prompt, left), self.taste.utility(prompt, right)
        if max(a, b) < -3.5:
            return "both_bad"
        if abs(a - b) < 0.3:
            return "tie"
        return "left" if rng.random() < _sigmoid(a - b) else "right"

    def prefers(self, prompt: str, first: str, second: str, rng: random.Random) -> bool:
        """Which of two answers this person would take if made to choose; ties are a coin's."""
        if self.careless or first.strip() == second.strip():
            return rng.random() < 0.5
        gap = self.taste.utility(prompt, first) - self.taste.utility(prompt, second)
        return rng.random() < _sigmoid(gap)

    def likes(self, prompt: str, answer: str, rng: random.Random) -> bool:
        """Thumbs up or down, noisy: the same person may contradict themselves another day."""
        if self.careless:
            return rng.random() < 0.7
        return rng.random() < _sigmoid(self.taste.utility(prompt, answer) + 0.4)

    def rates(self, prompt: str, answer: str, rng: random.Random) -> int:
        """A rating from 1 to 5 around the same hidden utility."""
        if self.careless:
            return rng.choice((3, 4, 5))
        happiness = _sigmoid(self.taste.utility(prompt, answer) + 0.4 + rng.gauss(0.0, 0.5))
        return 1 + min(4, int(5 * happiness))


@dataclass(frozen=True)
class Population:
    """The people of one seed: a crowd's taste, and persons who differ a little from it."""

    crowd: Taste
    people: tuple[Person, ...]

    @property
    def likes_blunt(self) -> bool:
        """Whether the crowd prefers blunt answers to polite ones."""
        return self.crowd.weights[0] < 0

    @property
    def likes_terse(self) -> bool:
        """Whether the crowd prefers short answers to long ones."""
        return self.crowd.weights[3] > 0


def population(seed: int, size: int = CROWD) -> Population:
    """Draws the hidden taste of a seed, signs of tone and brevity included, and its people."""
    rng = random.Random(f"taste {seed}")
    weights = (
        rng.choice((-1, 1)) * rng.uniform(2.0, 3.0),
        rng.uniform(1.8, 2.7),
        rng.uniform(1.4, 2.4),
        rng.choice((-1, 1)) * rng.uniform(0.9, 1.7),
        rng.uniform(1.4, 2.4),
    )
    # People expect about what the desk has always written, whatever their taste.
    typical = corpus.conversations(400, corpus.SFT_MIX, _TYPICAL_SEED)
    crowd = Taste(weights)
    expected = sum(crowd.utility(prompt.text, text) for prompt, text in typical) / len(typical)
    people = tuple(
        Person(
            name=f"user-{seed}-{number:03d}",
            taste=Taste(tuple(w + rng.gauss(0.0, OWN_MIND) for w in weights), expected),
            careless=rng.random() < CARELESS_SHARE,
        )
        for number in range(size)
    )
    return Population(Taste(weights, expected), people)


def _sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value))
