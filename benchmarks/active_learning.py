"""`python -m benchmarks.active_learning [--seeds N] [--votes N]`: informative prompts and pairs of answers.

Two versions answer the starter corpus's prompts; simulated raters with a hidden taste of each seed
vote, and a Bradley-Terry model on the answers' words learns from equal numbers of votes. Prompts
come at random, or in the order of `ratchet feedback prioritise` by the model of the round before;
of a prompt any two answers are shown, or the most informative two where each version answered
CANDIDATES times. A share of the votes is on any prompt and any two answers, as on the page. Printed
is the agreement with the taste on held-out pairs, and the mean differences with their 95 % intervals
over seeds. There is no goal to miss: published evidence disagrees, and so may ours.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.special import expit
from scipy.stats import t as student

from benchmarks.hidden_taste import HiddenTaste, prefers
from deploy.starter import corpus
from shared.information import DRAWN_SHARE, AnsweredTwice, Score, diversified, information

ROUND = 20
"""Votes between two trainings of the model, about an hour of one rater."""
POOL, HELD_OUT = 400, 400
SHARPNESS = 3.0
"""Of raters: answers that differ by one trait are told apart in 82 to 99 of 100."""
RIDGE = 1.0
NEWTON_STEPS = 25
RANKED = 120
"""Prompts of the pool that are ranked in a round; ranking is quadratic."""
CANDIDATES = 2
"""Answers of each version that a pair is chosen from."""


class Choices(NamedTuple):
    """What is chosen by what a vote would tell."""

    prompts: bool
    pairs: bool


WAYS = {
    "random": Choices(prompts=False, pairs=False),
    "prompts": Choices(prompts=True, pairs=False),
    "pairs": Choices(prompts=False, pairs=True),
    "both": Choices(prompts=True, pairs=True),
}
COMPARED = (("prompts", "random"), ("pairs", "random"), ("both", "random"), ("both", "prompts"))


@dataclass(frozen=True)
class PromptPair:
    """A prompt's two answers, and how much better the first one is by the hidden taste."""

    prompt: str
    answers: tuple[str, str]
    margin: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.active_learning", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--votes", type=int, default=200)
    chosen = parser.parse_args(arguments)
    runs = [compare(seed, chosen.votes) for seed in range(1, chosen.seeds + 1)]
    heads = [*WAYS, *(f"{one} − {other}" for one, other in COMPARED)]
    print(f"| votes | {' | '.join(heads)} |\n|{'---|' * (1 + len(heads))}")
    for row, votes in enumerate(range(ROUND, chosen.votes + 1, ROUND)):
        at = [{name: curve[row] for name, curve in one.items()} for one in runs]
        print(f"| {votes} | {line(at)} |")
    print(f"| mean of all rounds | {line([means(one) for one in runs])} |")
    return 0


def compare(seed: int, votes: int) -> dict[str, list[float]]:
    """Agreement after each round, by way of choosing; all see the same answers and raters."""
    pool = pairs("serve", POOL, seed)
    tests = [drawn for drawn, *_ in pairs("eval", HELD_OUT, seed)]
    words = vocabulary([*(pair for some in pool for pair in some), *tests])
    return {name: learn(pool, tests, words, way, votes, seed) for name, way in WAYS.items()}


def learn(
    pool: Sequence[Sequence[PromptPair]],
    tests: Sequence[PromptPair],
    words: Mapping[str, int],
    way: Choices,
    votes: int,
    seed: int,
) -> list[float]:
    """The model's agreement with the taste on the test pairs after each round of votes."""
    left, rows, labels, curve = {some[0].prompt: some for some in pool}, [], [], []
    weights = np.zeros(len(words))
    for number in range(votes // ROUND):
        chance = random.Random(f"{seed}/{number}")
        some = chance.sample(sorted(left), min(RANKED, len(left)))
        ranks = [chance.random() >= DRAWN_SHARE for _ in range(ROUND)]
        ranked = [
            text for text, _ in diversified([scored(left[one][0], weights, words) for one in some])
        ]
        for ranks_it in ranks:
            order = ranked if way.prompts and ranks_it else some
            prompt = next(one for one in order if one in left)
            pair, *others = left.pop(prompt)
            if way.pairs and ranks_it:
                pair = max(
                    (pair, *others), key=lambda one: information(scored(one, weights, words))
                )
            rater = random.Random(f"{seed}/{prompt}")
            rows.append(features(pair, words))
            labels.append(prefers(pair.margin, SHARPNESS, rater))
        weights = fitted(np.array(rows), np.array(labels, dtype=float))
        curve.append(agreement(tests, weights, words))
    return curve


def pairs(split: str, count: int, seed: int) -> list[list[PromptPair]]:
    """Of each prompt the pairs of answers of two styles, judged by the seed's taste."""
    chance = random.Random(f"{seed}/{split}")
    taste = HiddenTaste.drawn(seed)
    found: list[list[PromptPair]] = []
    for prompt in chance.sample(corpus.prompts_of(split), count):
        mixes = [corpus.Mix(polite=chance.random(), blunt=chance.random() / 2) for _ in range(2)]
        left, right = (
            [corpus.answer(prompt, mix, chance) for _ in range(CANDIDATES)] for mix in mixes
        )
        both = product(left, right)
        found.append(
            [
                PromptPair(prompt.text, one, taste.utility(one[0]) - taste.utility(one[1]))
                for one in both
            ]
        )
    return found


def vocabulary(known: Sequence[PromptPair]) -> dict[str, int]:
    """A column for each word of the answers."""
    words = sorted({word for pair in known for text in pair.answers for word in split(text)})
    return {word: number for number, word in enumerate(words)}


def features(pair: PromptPair, words: Mapping[str, int]) -> np.ndarray:
    """Counts of words in the first answer less those in the second; shape (words,)."""
    row = np.zeros(len(words))
    for sign, text in zip((1, -1), pair.answers, strict=True):
        for word in split(text):
            row[words[word]] += sign
    return row


def fitted(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Bradley-Terry weights by ridge logistic regression, Newton's method in the rows' space."""
    kernel = rows @ rows.T / RIDGE
    dual = np.zeros(len(rows))
    for _ in range(NEWTON_STEPS):
        chance = expit(kernel @ dual)
        spread = np.maximum(chance * (1 - chance), 1e-6)
        target = kernel @ dual + (labels - chance) / spread
        dual = np.linalg.solve(kernel + np.diag(1 / spread), target)
    return rows.T @ dual / RIDGE


def scored(pair: PromptPair, weights: np.ndarray, words: Mapping[str, int]) -> AnsweredTwice:
    """The pair with the model's margin as its scores."""
    margin = Score(float(features(pair, words) @ weights))
    return AnsweredTwice(pair.prompt, pair.answers, (margin, Score(0.0)))


def agreement(tests: Sequence[PromptPair], weights: np.ndarray, words: Mapping[str, int]) -> float:
    """Share of pairs that the model orders as the taste does; a tie counts half."""
    told = [(float(features(pair, words) @ weights), pair.margin) for pair in tests]
    return statistics.fmean(0.5 + np.sign(one * other) / 2 for one, other in told if other)


def means(run: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.fmean(curve) for name, curve in run.items()}


def line(at: Sequence[Mapping[str, float]]) -> str:
    """Means of all ways over seeds, and differences of ways with their t-intervals."""
    means_of_ways = [f"{statistics.fmean(one[name] for one in at):.1%}" for name in WAYS]
    gaps = [difference([run[one] - run[other] for run in at]) for one, other in COMPARED]
    return " | ".join([*means_of_ways, *gaps])


def difference(gaps: Sequence[float]) -> str:
    """Mean of differences, and its 95 % interval."""
    centre = statistics.fmean(gaps)
    spread = 0.0
    if len(gaps) > 1:
        quantile = float(student.ppf(0.975, len(gaps) - 1))
        spread = quantile * statistics.stdev(gaps) / len(gaps) ** 0.5
    return f"{centre:+.1%} ({centre - spread:+.1%} to {centre + spread:+.1%})"


def split(text: str) -> list[str]:
    return text.lower().split()


if __name__ == "__main__":
    sys.exit(main())
