"""`.venv-ml/bin/python -m benchmarks.attempts [JOBS]`: which way of choosing attempts passes the gate.

Simulated jobs. Each has a response surface of its own: how the win rate rises and falls with learning
rate, epochs and beta, how KL, perplexity and truncated answers grow, and where the recipe stands on
it. The rule and the search are the service's own code; only training and judging are drawn. A job on
one axis has one good distance from the parent, on two axes rate and epochs must also suit each other.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Sequence

from services.training.adjustment import (
    Space,
    Tried,
    directed,
    direction,
    search_request,
    step,
)
from services.training.trainers.job import SearchRequest
from services.training.trainers.search import suggest
from shared.contracts.events.versions import GateCheck, GateResult
from shared.contracts.recipes import DpoHyperparameters, TrainerHyperparameters, search_space
from shared.intervals import wilson

RECIPE = DpoHyperparameters()
SPACE = search_space(RECIPE)
ATTEMPTS = 8
SHOWN = (1, 2, 3, 4, 6, 8)
Choice = Callable[[Sequence[Tried], int], TrainerHyperparameters]


class Surface:
    """What training with some hyperparameters gives in one job."""

    def __init__(self, seed: int, *, axes: int) -> None:
        draw = random.Random(seed)
        self._axes = axes
        self._start, self._tilt = draw.uniform(-2.2, 2.2), draw.uniform(-1.5, 1.5)
        self._gain, self._width = draw.uniform(0.07, 0.22), draw.uniform(0.3, 1.0)
        self._rate, self._epochs = draw.uniform(0.7, 1.3), draw.uniform(0.5, 1.0)
        self._beta, self._kl = draw.uniform(0.2, 0.8), draw.uniform(0.15, 0.6)
        self._prompts = draw.choice((100, 150, 300))
        self._draw = random.Random(seed + 1_000_000)

    def judged(self, parameters: TrainerHyperparameters) -> tuple[GateResult, dict[str, float]]:
        """The gate's checks and the figures of one attempt."""
        rate, epochs, beta = (
            math.log(getattr(parameters, name) / getattr(RECIPE, name)) for name in SPACE
        )
        moved = self._start + self._rate * rate + self._epochs * epochs - self._beta * beta
        apart = (self._tilt + 0.8 * (rate - epochs)) / 1.2 if self._axes == 2 else 0.0
        gain = self._gain * math.exp(-((moved / self._width) ** 2 + apart**2) / 2)
        chance = 0.5 + gain - 0.12 * max(0.0, moved - self._width)
        wins = sum(self._draw.random() < chance for _ in range(self._prompts))
        low, high = wilson(wins, self._prompts)
        checks = (
            _check("win_rate", wins / self._prompts, 0.55, least=True),
            _check("win_rate_low", low, 0.5, least=True),
            _check("stop", 0.95 - 0.1 * max(0.0, moved - 0.8) ** 2, 0.9, least=True),
            _check("distinct", math.exp(moved + 3), 0.8, least=True),
            _check("kl", self._kl * math.exp(1.1 * moved), 1.0),
            _check("perplexity", 1 + 0.12 * math.exp(0.9 * moved), 1.3),
        )
        gate = GateResult(passed=all(check.passed for check in checks), checks=checks)
        return gate, {"win_rate_high": high}


def passed_at(surface: Surface, choose: Choice, seed: int) -> int | None:
    """The attempt that passes the gate, if one does."""
    parameters: TrainerHyperparameters = RECIPE
    tried: list[Tried] = []
    for number in range(1, ATTEMPTS + 1):
        gate, figures = surface.judged(parameters)
        way = direction(parameters, gate, figures)
        tried.append(Tried(parameters, "recipe", gate, way))
        if gate.passed:
            return number
        if way is None:
            return None
        parameters = choose(tried, seed)
    return None


def rule_alone(tried: Sequence[Tried], _: int) -> TrainerHyperparameters:
    last = tried[-1]
    return step(last.parameters, last.direction, SPACE) if last.direction else last.parameters


def rule_then(space: Space | None, ask: Callable[[SearchRequest], dict[str, float]]) -> Choice:
    """The rule while it goes one way, then `ask`: in a space, or in the box around the attempts."""

    def choose(tried: Sequence[Tried], seed: int) -> TrainerHyperparameters:
        found = directed(tried, SPACE) if len({one.direction for one in tried}) == 1 else None
        asked = search_request(tried, SPACE, seed)
        if space:
            asked = asked.model_copy(update={"space": dict(space)})
        return found or RECIPE.model_copy(update=ask(asked))

    return choose


def search_alone(tried: Sequence[Tried], seed: int) -> TrainerHyperparameters:
    asked = search_request(tried, SPACE, seed).model_copy(update={"space": SPACE})
    return RECIPE.model_copy(update=suggest(asked))


def at_random(asked: SearchRequest) -> dict[str, float]:
    draw = random.Random(asked.seed)
    return {
        name: math.exp(draw.uniform(math.log(low), math.log(high)))
        for name, (low, high) in asked.space.items()
    }


WAYS: dict[str, Choice] = {
    "rule alone": rule_alone,
    "rule, then search around the attempts (the service's)": rule_then(None, suggest),
    "rule, then at random around the attempts": rule_then(None, at_random),
    "rule, then search in the whole space": rule_then(SPACE, suggest),
    "search alone, in the whole space": search_alone,
}


def _check(name: str, value: float, limit: float, *, least: bool = False) -> GateCheck:
    passed = value >= limit if least else value <= limit
    return GateCheck(name=name, passed=passed, value=value, limit=limit)


def main(jobs: int) -> None:
    """Print, by kind of job and way, the share of jobs that passed within so many attempts."""
    print(f"{jobs} jobs of each kind; share passed within so many attempts")
    for axes in (1, 2):
        print(f"\n| {axes} ax{'es' if axes > 1 else 'is'} | {' | '.join(map(str, SHOWN))} |")
        print(f"|---{'|---' * len(SHOWN)}|")
        for name, choose in WAYS.items():
            ends = [passed_at(Surface(seed, axes=axes), choose, seed) for seed in range(jobs)]
            shares = [sum(end is not None and end <= most for end in ends) / jobs for most in SHOWN]
            print(f"| {name} | {' | '.join(f'{share:.0%}' for share in shares)} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
