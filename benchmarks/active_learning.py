"""`python -m benchmarks.active_learning [--seeds N] [--votes N]`: informative against random prompts.

Two versions answer the starter corpus's prompts; simulated raters with a hidden taste of each seed
vote, and a Bradley-Terry model on the answers' words learns from equal numbers of votes. Prompts
come at random, or in the order of `ratchet feedback prioritise` by the model of the round before.
Printed is the agreement with the taste on held-out pairs, and the mean difference with its 95 %
interval over seeds. There is no goal to miss: published evidence disagrees, and so may ours.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from scipy.stats import t as student

from benchmarks.hidden_taste import HiddenTaste, prefers
from deploy.starter import corpus
from shared.information import AnsweredTwice, Score, diversified

ROUND = 20
"""Votes between two trainings of the model, about an hour of one rater."""
POOL, HELD_OUT = 400, 400
SHARPNESS = 3.0
"""Of raters: answers that differ by one trait are told apart in 82 to 99 of 100."""
RIDGE = 1.0
NEWTON_STEPS = 25
CANDIDATES = 120
"""Prompts of the pool that are ranked in a round; ranking is quadratic."""

Pick = Callable[[Sequence[AnsweredTwice], int], list[str]]


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
    print("| votes | random | informative | difference | 95 % interval |\n|---|---|---|---|---|")
    for row, votes in enumerate(range(ROUND, chosen.votes + 1, ROUND)):
        at = [{name: curve[row] for name, curve in one.items()} for one in runs]
        print(f"| {votes} | {line(at)} |")
    print(f"| mean of all rounds | {line([means(one) for one in runs])} |")
    return 0


def compare(seed: int, votes: int) -> dict[str, list[float]]:
    """Agreement after each round, by way of picking prompts; both see the same pairs and raters."""
    pool, tests = pairs("serve", POOL, seed), pairs("eval", HELD_OUT, seed)
    words = vocabulary([*pool, *tests])
    ways: dict[str, Pick] = {
        "random": lambda asked, count: random.Random(seed).sample([q.text for q in asked], count),
        "informative": lambda asked, count: [text for text, _ in diversified(asked)[:count]],
    }
    return {name: learn(pool, tests, words, pick, votes, seed) for name, pick in ways.items()}


def learn(
    pool: Sequence[PromptPair],
    tests: Sequence[PromptPair],
    words: Mapping[str, int],
    pick: Pick,
    votes: int,
    seed: int,
) -> list[float]:
    """The model's agreement with the taste on the test pairs after each round of votes."""
    left, rows, labels, curve = {pair.prompt: pair for pair in pool}, [], [], []
    weights = np.zeros(len(words))
    for number in range(votes // ROUND):
        chance = random.Random(f"{seed}/{number}")
        some = chance.sample(sorted(left), min(CANDIDATES, len(left)))
        asked = [scored(left[prompt], weights, words) for prompt in some]
        for prompt in pick(asked, ROUND):
            pair = left.pop(prompt)
            rater = random.Random(f"{seed}/{prompt}")
            rows.append(features(pair, words))
            labels.append(prefers(pair.margin, SHARPNESS, rater))
        weights = fitted(np.array(rows), np.array(labels, dtype=float))
        curve.append(agreement(tests, weights, words))
    return curve


def pairs(split: str, count: int, seed: int) -> list[PromptPair]:
    """Pairs of answers in styles of their own, judged by the seed's taste."""
    chance = random.Random(f"{seed}/{split}")
    taste = HiddenTaste.drawn(seed)
    found: list[PromptPair] = []
    for prompt in chance.sample(corpus.prompts_of(split), count):
        mixes = [corpus.Mix(polite=chance.random(), blunt=chance.random() / 2) for _ in range(2)]
        first, second = (corpus.answer(prompt, mix, chance) for mix in mixes)
        margin = taste.utility(first) - taste.utility(second)
        found.append(PromptPair(prompt.text, (first, second), margin))
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
    """Means of both ways over seeds, and their difference with its t-interval."""
    gaps = [one["informative"] - one["random"] for one in at]
    centre = statistics.fmean(gaps)
    spread = 0.0
    if len(gaps) > 1:
        quantile = float(student.ppf(0.975, len(gaps) - 1))
        spread = quantile * statistics.stdev(gaps) / len(gaps) ** 0.5
    both = (statistics.fmean(one[name] for one in at) for name in ("random", "informative"))
    return (
        " | ".join(f"{share:.1%}" for share in both)
        + f" | {centre:+.1%} | {centre - spread:+.1%} to {centre + spread:+.1%}"
    )


def split(text: str) -> list[str]:
    return text.lower().split()


if __name__ == "__main__":
    sys.exit(main())
