"""Adjustment of hyperparameters between the attempts of a job. Pure.

The failed checks say which way to go, and a rule goes that way by fixed steps. Where it would turn
back, or is at a bound, what is between and around the attempts is searched (`trainers/search.py`).
"""

# pyright: strict
from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from services.training.trainers.job import SearchRequest, SearchTrial
from shared.contracts.events.versions import GateCheck, GateResult
from shared.contracts.recipes import SftHyperparameters, TrainerHyperparameters

NO_DATA = frozenset({"judge_data", "judge", "prompts", "heldout"})
TOO_FAR = frozenset(
    {"perplexity", "stop", "length_low", "length_high", "repetition", "kl", "kl_first", "ai_judge"}
)
FORGOT = frozenset({"cases", "capability", "capability_task", "safety"})
LEAST_BETA = 0.01
"""What a beta of zero is raised from."""
AROUND = 1.3
"""Factor by which the search may leave what was tried."""
SEEDS = 2**32

Space = Mapping[str, tuple[float, float]]


class Direction(StrEnum):
    """Which way the next attempt should go."""

    bolder = "bolder"
    """Further from the parent: a higher rate, more epochs."""
    gentler = "gentler"
    """Nearer to it: a lower rate, fewer epochs, a higher beta."""


@dataclass(frozen=True)
class Tried:
    """One attempt that the gate judged."""

    parameters: TrainerHyperparameters
    chosen_by: Literal["recipe", "rule", "search"]
    gate: GateResult
    direction: Direction | None = None
    """Where to go from it; None where no parameter cures what failed, or nothing did."""

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return tuple(check.name for check in self.gate.checks if not check.passed)

    @property
    def shortfall(self) -> float:
        """How far it is from passing: the sum, over failed checks, of the share of the limit that is missed.

        A check counts at most 1, and 1 where it has no value. Attempts that pass end the job, so all
        that are compared violate something, and the total violation orders those (Deb 2000).
        """
        return sum(_missed(check) for check in self.gate.checks if not check.passed)

    def searched(self, space: Space) -> dict[str, float]:
        """Its values of the hyperparameters that a job's attempts may change."""
        return {name: float(getattr(self.parameters, name)) for name in space}

    def data(self, number: int, space: Space) -> dict[str, Any]:
        """What a report tells of it."""
        return {
            "attempt": number,
            "chosen_by": self.chosen_by,
            "parameters": self.searched(space),
            "shortfall": round(self.shortfall, 4),
            "failed": list(self.failed),
        }


def direction(
    parameters: TrainerHyperparameters, gate: GateResult, figures: Mapping[str, float]
) -> Direction | None:
    """Which way the next attempt should go, or None where no parameter would help.

    Hardly moved, or not better though near the parent: bolder. Too far from the parent, or something
    forgotten: gentler. SFT that does not end its answers has learnt too little. Worse beyond doubt,
    or nothing to judge by: no parameter cures that.
    """
    failed = {check.name for check in gate.checks if not check.passed}
    if not failed or failed & NO_DATA:
        return None
    if hardly_moved(failed):
        return Direction.bolder
    sft = isinstance(parameters, SftHyperparameters)
    if sft and failed == {"stop"}:
        return Direction.bolder
    if failed & (TOO_FAR | FORGOT):
        return Direction.gentler
    if sft or figures.get("win_rate_high", 1.0) < 0.5:
        return None
    return Direction.bolder


def hardly_moved(failed: Collection[str]) -> bool:
    """Whether the candidate is too near to base or parent to be told apart from it."""
    return "distinct" in failed


def directed(tried: Sequence[Tried], space: Space) -> TrainerHyperparameters | None:
    """The rule's move from the last attempt; None where a search should choose.

    The rule has no memory: once it turns it would go back and forth over what was tried.
    """
    last = tried[-1]
    turned = len({one.direction for one in tried}) > 1
    if last.direction is None or turned or last.chosen_by == "search":
        return None
    moved = step(last.parameters, last.direction, space)
    return None if moved == last.parameters else moved


def step(
    parameters: TrainerHyperparameters, way: Direction, space: Space
) -> TrainerHyperparameters:
    """The parameters one step further that way, within the space."""
    beta: float | None = getattr(parameters, "beta", None)
    wanted = {
        "learning_rate": parameters.learning_rate * 1.5,
        "epochs": parameters.epochs * 1.5,
    }
    if way is Direction.gentler:
        wanted = {
            "learning_rate": parameters.learning_rate / 2,
            "epochs": parameters.epochs * 2 / 3,
        }
        if beta is not None:
            wanted["beta"] = max(beta, LEAST_BETA) * 1.5
    update = {name: _within(value, space[name]) for name, value in wanted.items()}
    return parameters.model_copy(update=update)


def search_request(tried: Sequence[Tried], space: Space, seed: int) -> SearchRequest:
    """What the search is asked: the box around the attempts, and how far each of them fell short.

    Attempts lie on both sides of what is wanted, or at a bound; far outside them the rule has been
    sent back already. The same attempts and the same seed of the job are the same request.
    """
    values = [
        {name: _within(value, space[name]) for name, value in one.searched(space).items()}
        for one in tried
    ]
    box = {
        name: (
            max(low, min(one[name] for one in values) / AROUND),
            min(high, max(one[name] for one in values) * AROUND),
        )
        for name, (low, high) in space.items()
    }
    return SearchRequest(
        space=box,
        trials=tuple(
            SearchTrial(parameters=chosen, shortfall=one.shortfall)
            for one, chosen in zip(tried, values, strict=True)
        ),
        seed=(seed + len(tried)) % SEEDS,
    )


def nearest(tried: Sequence[Tried]) -> int:
    """Index of the attempt that fell least short; the first of equals."""
    return min(range(len(tried)), key=lambda index: tried[index].shortfall)


def _missed(check: GateCheck) -> float:
    if check.value is None or not check.limit:
        return 1.0
    return min(1.0, abs(check.value - check.limit) / abs(check.limit))


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
