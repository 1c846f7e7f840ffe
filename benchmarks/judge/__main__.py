"""`python -m benchmarks.judge [--rollouts N] [--seed S] [--rows TEXT] [--plot FILE.svg]`.

Three tables: how often a candidate that is not worse is taken back, how soon a worse one is, and
what hostile users, keys and tenants can do. Seeds are fixed; no clock of this machine enters. The
judge's column calls the controller's own `Judge`; crowds and the peers' rules are simulated with
numpy and scipy. `RateRatioTest` of sequential-analysis (AGPL, so not among the requirements) is in
the table where it can be imported; without it the command says so, and how it is got.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from math import inf, log
from pathlib import Path
from statistics import median
from zlib import crc32

import numpy as np

from benchmarks.judge.crowd import ArmTruth, Hostile, SimulatedRollout, simulate
from benchmarks.judge.plot import detection_plot
from benchmarks.judge.rules import ALPHA, PEER_PACKAGE, PEER_REMEDY, RULES
from services.rollout.criteria import alpha_of
from services.rollout.criteria.ratios import ErrorRatio
from services.rollout.strategy import JudgeSettings

CHUNK = 25
"""Rollouts that one task of a worker simulates."""
PEER_ROLLOUTS = 400
"""Rollouts of a row that the peers' rules decide, too."""
CAUGHT = 0.99
"""Share of rollouts in which a candidate with three times the errors must be taken back."""
HARMFUL = ArmTruth(errors=0.1)
MADE_UP = Hostile(users=100, on_candidate=True, requests_per_s=0.01, voter="key")
"""Users that a key's holder made up until they fell on the candidate."""
DISLIKED = ArmTruth(score=0.4)
LIKED = ArmTruth(score=0.8)


@dataclass(frozen=True)
class TableRow:
    """A row of a table. `goal`: requests of the candidate until it is caught, at most."""

    case: SimulatedRollout
    harmful: bool
    goal: float = inf
    before_weight: float = 1.0
    peers: bool = True
    of_all: float = 1.0
    """In what share of rollouts this comes about."""


@dataclass(frozen=True)
class RuleActions:
    """What each rule did in one rollout: the candidate's requests and weight when it acted."""

    requests: dict[str, float]
    weight: dict[str, float]
    seconds: dict[str, float]


def rows() -> list[TableRow]:
    """All rows."""
    return [*_equal(), *_detection(), *_whole(), *_hostile()]


def _equal() -> Iterator[TableRow]:
    for rate in (1.0, 10.0, 100.0):
        yield TableRow(
            SimulatedRollout(f"identical, {rate:g} requests/s", rate=rate), harmful=False
        )
    yield TableRow(
        SimulatedRollout(
            "1.5 times the errors, to the margin", candidate=ArmTruth(errors=0.015), rate=10
        ),
        harmful=False,
    )


def _detection() -> Iterator[TableRow]:
    """One weight, one request of the candidate a second, looks of a thirtieth of the bound."""
    goals = {0.3: 20.0, 0.1: 90.0, 0.05: 300.0, 0.03: 1_550.0}
    for weight in (0.05, 0.2, 0.5):
        for errors, goal in goals.items():
            bound = information_bound(errors, 0.01, weight)
            wanted = goal if weight == 0.05 else 1.3 * bound
            seconds = 2.5 * bound
            case = SimulatedRollout(
                f"{errors:.0%} errors against 1 %, {weight:.0%} weight",
                candidate=ArmTruth(errors=errors),
                rate=1 / weight,
                stages=((weight, 4 * seconds),),
                looks=75,
                even_s=seconds,
                daily=0.0,
                users=4_000,
            )
            yield TableRow(case, harmful=True, goal=wanted)


def _whole() -> Iterator[TableRow]:
    for rate in (1.0, 10.0):
        yield TableRow(
            SimulatedRollout(
                f"3 % errors against 1 %, {rate:g} requests/s",
                candidate=ArmTruth(errors=0.03),
                rate=rate,
            ),
            harmful=True,
        )
    yield TableRow(
        SimulatedRollout(
            "satisfaction 0.8 x, 10 requests/s", candidate=ArmTruth(score=0.56), rate=10
        ),
        harmful=True,
        before_weight=0.5,
        peers=False,
    )


def _hostile() -> Iterator[TableRow]:
    crowds = {
        "one hostile user": Hostile(users=1),
        "one hostile user, on the candidate": Hostile(users=1, on_candidate=True),
        "5 % hostile users": Hostile(share=0.05),
        "one hostile API key of three": MADE_UP,
        "one hostile tenant of three": replace(MADE_UP, voter="tenant"),
        "one hostile tenant of two": replace(MADE_UP, voter="tenant", of=2),
    }
    for words, hostile in crowds.items():
        unlucky = hostile.on_candidate and hostile.voter is None
        yield TableRow(
            SimulatedRollout(f"identical, {words}", hostile=hostile),
            harmful=False,
            peers=False,
            of_all=0.05 if unlucky else 1.0,
        )
        yield TableRow(
            SimulatedRollout(f"10 % errors, {words}", candidate=HARMFUL, hostile=hostile),
            harmful=True,
            peers=False,
        )
        yield TableRow(
            SimulatedRollout(
                f"satisfaction 0.4 against 0.8, {words}",
                candidate=DISLIKED,
                stable=LIKED,
                hostile=hostile,
            ),
            harmful=True,
            peers=False,
        )


def information_bound(errors: float, stable: float, weight: float) -> float:
    """The candidate's requests at which the best test that knows both rates has the evidence.

    Log of one over the criterion's alpha, and the mean overshoot of half a failure's evidence, by
    the Kullback-Leibler divergence a request (Wald 1945): the next failure is the candidate's with
    one chance under the margin and another in truth.
    """
    settings = JudgeSettings(alpha=ALPHA)
    odds = settings.error_margin * weight / (1 - weight)
    null = odds / (1 + odds)
    failing = errors * weight + stable * (1 - weight)
    true = errors * weight / failing
    divergence = true * log(true / null) + (1 - true) * log((1 - true) / (1 - null))
    needed = log(1 / alpha_of(ErrorRatio, settings)) + log(true / null) / 2
    return needed / (failing * divergence) * weight


def decided(row: TableRow, count: int, seed: int, *, peers: bool = True) -> list[RuleActions]:
    """What the judge did in some rollouts, and where they are asked, its peers."""
    generator = np.random.default_rng([seed, crc32(row.case.name.encode())])
    rules = RULES if row.peers and peers else {"judge": RULES["judge"]}
    found = [RuleActions({}, {}, {}) for _ in range(count)]
    deciding = [{name: rule() for name, rule in rules.items()} for _ in range(count)]
    requests = [0.0] * count
    rollouts = simulate(row.case, generator, count)
    for looks in rollouts:
        for number, look in looks.items():
            requests[number] += look.piece.candidate.requests
            for name, decide in list(deciding[number].items()):
                taken_back = decide(look)
                if taken_back:
                    found[number].requests[name] = requests[number]
                    found[number].weight[name] = look.weight
                    found[number].seconds[name] = look.end_s
                if taken_back is not False:
                    del deciding[number][name]
            if not deciding[number]:
                rollouts.end(number)
    return found


def met(row: TableRow, found: Sequence[RuleActions]) -> str:
    """What a row's judge misses; empty where it reaches its goals."""
    count = len(found)
    caught = [one for one in found if "judge" in one.requests]
    share = len(caught) / count
    if not row.harmful:
        # Three standard errors above alpha is no accident of the simulation.
        allowed = ALPHA / row.of_all
        allowed += 3 * (allowed * (1 - allowed) / count) ** 0.5
        return "" if share <= allowed else f"taken back in {share:.1%}"
    if row.goal < inf:
        middle = median(one.requests.get("judge", inf) for one in found)
        return "" if middle <= row.goal else f"{middle:.0f} requests, wanted {row.goal:.0f}"
    early = sum(one.weight["judge"] < row.before_weight for one in caught) / count
    return "" if early >= CAUGHT else f"caught in {early:.1%}"


def line(row: TableRow, found: Sequence[RuleActions]) -> str:
    """A row as Markdown: each rule's share of rollouts, and the median of what it took."""
    cells: list[str] = []
    for name in RULES:
        if not row.peers and name != "judge":
            cells.append("")
            continue
        caught = [one.requests[name] for one in found if name in one.requests]
        cell = f"{len(caught) / (len(found) if name == 'judge' else min(len(found), PEER_ROLLOUTS)):.1%}"
        cells.append(f"{cell}, {median(caught):,.0f}" if caught else cell)
    caught = sorted(one.seconds["judge"] for one in found if "judge" in one.seconds)
    delay = _time(caught[len(caught) // 2]) if row.harmful and caught else ""
    goal = f"{row.goal:,.0f}" if row.goal < inf else ""
    return f"| {row.case.name} | {' | '.join(cells)} | {goal} | {delay} |"


def _time(seconds: float) -> str:
    hours = seconds / 3_600
    return f"{hours:.1f} h" if hours >= 1 else f"{seconds / 60:.1f} min"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where the judge is wrong too often or too late."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judge", description=main.__doc__)
    parser.add_argument("--rollouts", type=int, default=2_000, help="simulated rollouts a row")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--plot", type=Path, help="write the times to detection there, as SVG")
    options = parser.parse_args(arguments)
    print(
        f"{options.rollouts} simulated rollouts a row (the peers decide {PEER_ROLLOUTS} of them), seed "
        f"{options.seed}, alpha {ALPHA:g} over a whole rollout. Each cell: share of rollouts in which the rule takes the candidate back, "
        "and after how many of its requests (median)."
    )
    if "RateRatio" not in RULES:
        print(f"\nWithout RateRatio: {PEER_PACKAGE} is not installed. {PEER_REMEDY}")
    print(f"\n| candidate | {' | '.join(RULES)} | at most | delay |")
    print("|---|" + "---:|" * (len(RULES) + 2))
    missed: list[str] = []
    plotted: dict[str, list[float]] = {}
    sizes = [CHUNK] * (options.rollouts // CHUNK) + [options.rollouts % CHUNK]
    with ProcessPoolExecutor(options.workers, initializer=gc.disable) as pool:
        # All at once: no worker waits for the other at the end of a row.
        submitted = [
            (
                row,
                [
                    pool.submit(
                        decided,
                        row,
                        size,
                        options.seed * 100_000 + number,
                        peers=number * CHUNK < PEER_ROLLOUTS,
                    )
                    for number, size in enumerate(sizes)
                    if size
                ],
            )
            for row in rows()
            if options.rows in row.case.name
        ]
        for row, tasks in submitted:
            found = [one for task in tasks for one in task.result()]
            print(line(row, found), flush=True)
            if wrong := met(row, found):
                missed.append(f"{row.case.name}: {wrong}")
            if row.goal < inf:
                caught = [one.requests["judge"] for one in found if "judge" in one.requests]
                plotted[row.case.name] = sorted(caught)
    if options.plot:
        options.plot.write_text(detection_plot(plotted))
    print(f"\nMISSED: {'; '.join(missed)}" if missed else "\nreached: all goals")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
