"""How often the judge is wrong, and how long it takes to be right, by simulation.

Beside it the classic rule: roll back when, in one look, the candidate's error rate is above 1.5
times stable's. Seeds are fixed; nothing here measures time of the machine.

`python -m benchmarks.judge [--rollouts N] [--seed S]`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from services.rollout.counts import ArmCounts, JudgeState, Slice
from services.rollout.judge import Judge
from services.rollout.strategy import JudgeSettings
from shared.contracts.events.rollouts import AnalysisOutcome

ALPHA = 0.01
ERROR_LIMITS = (0.05, 0.03, 0.02)
MOST_FOUND = 0.95
"""Share of rollouts in which a worse candidate must be failed within its looks."""


@dataclass(frozen=True)
class SimulatedArm:
    """True shares of one arm, and how often its users score an answer."""

    errors: float = 0.005
    slow: float = 0.002
    score: float = 0.7
    feedback: float = 0.3


@dataclass(frozen=True)
class SimulatedRollout:
    """One kind of rollout: arms, requests a second, candidate's weight, looks of one second."""

    name: str
    candidate: SimulatedArm
    stable: SimulatedArm
    rate: float = 30.0
    weight: float = 0.05
    looks: int = 600


EQUAL = (
    SimulatedRollout("identical, 5 % weight", SimulatedArm(), SimulatedArm(), looks=1200),
    SimulatedRollout(
        "identical, 50 % weight, 1 % errors",
        SimulatedArm(errors=0.01),
        SimulatedArm(errors=0.01),
        weight=0.5,
    ),
    SimulatedRollout(
        "identical, 10 % errors (limits off)",
        SimulatedArm(errors=0.1),
        SimulatedArm(errors=0.1),
        weight=0.2,
    ),
    SimulatedRollout(
        "1.5 times the errors, to the margin",
        SimulatedArm(errors=0.012),
        SimulatedArm(errors=0.008),
        weight=0.5,
    ),
)
AGAINST_ONE_PERCENT = tuple(
    SimulatedRollout(
        f"{errors:.0%} errors against 1 %, 5 % weight",
        SimulatedArm(errors=errors),
        SimulatedArm(errors=0.01),
        rate=60,
        looks=looks,
    )
    for errors, looks in ((0.3, 300), (0.1, 300), (0.05, 900), (0.03, 2_700))
)
"""The requests that each takes are the judge's price; see docs/rollout.md."""
WORSE = (
    *AGAINST_ONE_PERCENT,
    SimulatedRollout("30 % errors, 5 % weight", SimulatedArm(errors=0.3), SimulatedArm()),
    SimulatedRollout("5 % errors, 5 % weight", SimulatedArm(errors=0.05), SimulatedArm()),
    SimulatedRollout(
        "2 % errors, 20 % weight", SimulatedArm(errors=0.02), SimulatedArm(), weight=0.2, looks=1800
    ),
    SimulatedRollout("10 % slow, 5 % weight", SimulatedArm(slow=0.1), SimulatedArm()),
    SimulatedRollout("satisfaction 0.4 against 0.7, 5 %", SimulatedArm(score=0.4), SimulatedArm()),
    SimulatedRollout(
        "satisfaction 0.4 against 0.7, 20 %", SimulatedArm(score=0.4), SimulatedArm(), weight=0.2
    ),
    SimulatedRollout(
        "satisfaction 0.6 against 0.7, 50 %",
        SimulatedArm(score=0.6),
        SimulatedArm(),
        weight=0.5,
        looks=1800,
    ),
)


def slices(case: SimulatedRollout, generator: np.random.Generator) -> list[Slice]:
    """One rollout's looks."""

    def arm(true: SimulatedArm, share: float) -> list[ArmCounts]:
        requests = generator.poisson(case.rate * share, case.looks)
        scores = generator.binomial(requests, true.feedback)
        return [
            ArmCounts(requests=n, failures=f, slow=s, scores=k, score_sum=up)
            for n, f, s, k, up in zip(
                requests.tolist(),
                generator.binomial(requests, true.errors).tolist(),
                generator.binomial(requests, true.slow).tolist(),
                scores.tolist(),
                generator.binomial(scores, true.score).tolist(),
                strict=True,
            )
        ]

    return [
        Slice(candidate=candidate, stable=stable)
        for candidate, stable in zip(
            arm(case.candidate, case.weight), arm(case.stable, 1 - case.weight), strict=True
        )
    ]


def judged(pieces: Sequence[Slice], *, error_limit: float | None) -> int | None:
    """The look after which the judge says Failed, from 1; None where it never does."""
    judge, state = Judge(JudgeSettings(alpha=ALPHA), ERROR_LIMITS), JudgeState()
    for look, piece in enumerate(pieces, 1):
        state = judge.advance(state, piece)
        if judge.verdict(state, error_limit=error_limit).outcome is AnalysisOutcome.failed:
            return look
    return None


def fixed_threshold(pieces: Sequence[Slice], *, least: float = 100) -> int | None:
    """The classic: each time the candidate has 100 requests, compare the rates of that window."""
    window = Slice()
    for look, piece in enumerate(pieces, 1):
        window = window + piece
        candidate, stable = window.candidate, window.stable
        if candidate.requests >= least and stable.requests >= least:
            rate_c = candidate.failures / candidate.requests
            rate_s = stable.failures / stable.requests
            if rate_c > 1.5 * rate_s:
                return look
            window = Slice()
    return None


def simulate(
    case: SimulatedRollout,
    rollouts: int,
    seed: int,
    decide: Callable[[Sequence[Slice]], int | None],
) -> list[int | None]:
    """When each of many rollouts was failed."""
    generator = np.random.default_rng(seed)
    return [decide(slices(case, generator)) for _ in range(rollouts)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 1 where the judge is wrong too often or misses a worse candidate."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judge", description=main.__doc__)
    parser.add_argument("--rollouts", type=int, default=100, help="simulated rollouts a case")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    rollouts: int = options.rollouts
    print(f"judge: alpha {ALPHA:g} over a whole rollout, one look a second, {rollouts} rollouts")
    print(
        f"\n{'false alarms on a candidate that is not worse':46}{'judge':>10}{'1.5 x rule':>12}{'limit':>8}"
    )
    worst = 0.0
    for case in EQUAL:
        limit = None if "limits off" in case.name else 0.05
        ours = simulate(case, rollouts, options.seed, lambda p, x=limit: judged(p, error_limit=x))
        theirs = simulate(case, rollouts, options.seed, fixed_threshold)
        share = sum(one is not None for one in ours) / rollouts
        classic = sum(one is not None for one in theirs) / rollouts
        worst = max(worst, share)
        print(f"{case.name:46}{share:>10.1%}{classic:>12.1%}{ALPHA:>8.1%}", flush=True)
    # Simulated seconds of the rollout: no clock of this machine enters.
    print(
        f"\n{'simulated seconds until a worse one fails':46}{'found':>8}{'median':>9}{'95 %':>8}{'requests':>10}"
    )
    missed: list[str] = []
    for case in WORSE:
        found = simulate(case, rollouts, options.seed, lambda p: judged(p, error_limit=0.05))
        seconds = sorted(one for one in found if one is not None)
        share = len(seconds) / rollouts
        middle = median(seconds) if seconds else float("nan")
        late = seconds[int(0.95 * (len(seconds) - 1))] if seconds else float("nan")
        spent = middle * case.rate * case.weight
        if share < MOST_FOUND:
            missed.append(case.name)
        print(f"{case.name:46}{share:>8.0%}{middle:>8.0f}s{late:>7.0f}s{spent:>10.0f}", flush=True)
    # Three standard errors above alpha is no accident of the simulation.
    allowed = ALPHA + 3 * (ALPHA * (1 - ALPHA) / rollouts) ** 0.5
    checks = [
        (worst <= allowed, f"false alarms at most {allowed:.1%} (worst {worst:.1%})"),
        (not missed, f"worse candidates found in {MOST_FOUND:.0%} of rollouts {missed or ''}"),
    ]
    for met, what in checks:
        print(f"{'reached' if met else 'MISSED'}: {what}")
    return 0 if all(met for met, _ in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
