"""Rules that decide on a rollout's looks: the judge's own, and those of the systems beside it.

Each is made anew for a rollout and told of one look after the other. It answers whether it takes
the candidate back, and None where it never will. The peers' rules see the same slices; a window of
theirs is as many looks as it takes.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from typing import Any

from scipy.stats import mannwhitneyu

from benchmarks.judge.crowd import SimulatedLook
from services.rollout.counts import NO_ARMS, Arms, JudgeState, Slice
from services.rollout.judge import Judge
from services.rollout.strategy import JudgeSettings
from shared.contracts.events.rollouts import AnalysisOutcome

ERROR_LIMITS = {0.05: 0.05, 0.2: 0.03, 0.5: 0.02}
"""The default strategy's error limit at each of its weights."""
ALPHA = 0.01
LEAST_EVIDENCE = math.log(1 / ALPHA)
SETTINGS = JudgeSettings(alpha=ALPHA)
JUDGE = Judge(SETTINGS, tuple(ERROR_LIMITS.values()))

PEER_PACKAGE = "sequential-analysis==0.4.0"
PEER_REMEDY = (
    f"`pip install --no-deps --target DIRECTORY {PEER_PACKAGE}`, and DIRECTORY in PYTHONPATH."
)

Decider = Callable[[SimulatedLook], bool | None]
Rule = Callable[[], Decider]


def judge() -> Decider:
    """Ratchet's judge with all criteria, each step's limit in force."""
    state, left_out = JudgeState(), _LeftOut()

    def decide(seen: SimulatedLook) -> bool:
        nonlocal state
        state = JUDGE.advance(state, seen.piece.but(voters={}))
        left_out.add(seen.piece)
        if not _may_be_broken(state):
            return False
        known = state.but(voters=left_out.totals, without=left_out)
        verdict = JUDGE.verdict(known, error_limit=ERROR_LIMITS[seen.weight])
        return verdict.outcome is AnalysisOutcome.failed

    return decide


def _may_be_broken(state: JudgeState) -> bool:
    """Whether a criterion may have the evidence that it needs: it then has a bet that is as good.

    Evidence is the mean of its bets, and a criterion's alpha at most that of the whole rollout.
    """
    best = max(map(max, state.wealth.values()), default=0.0)
    return best >= LEAST_EVIDENCE or state.run.failures >= SETTINGS.consecutive_failures


def fixed_threshold() -> Decider:
    """Each time both arms have 100 requests: candidate's error rate above 1.5 times stable's."""
    window = _Window(requests=100)

    def decide(seen: SimulatedLook) -> bool:
        arms = window.add(seen)
        return arms is not None and _rate(arms.candidate) > 1.5 * _rate(arms.stable)

    return decide


def flagger() -> Decider:
    """Flagger's defaults: success rate of a minute at least 99 %, five failed checks in all."""
    window, failed = _Window(requests=1, seconds=60.0), 0

    def decide(seen: SimulatedLook) -> bool:
        nonlocal failed
        arms = window.add(seen)
        failed += arms is not None and _rate(arms.candidate) > 0.01
        return failed >= 5

    return decide


def kayenta() -> Decider:
    """Kayenta's Mann-Whitney test of error rates a minute, 98 % sure, at every tenth minute."""
    window = _Window(requests=1, seconds=60.0)
    candidate: list[float] = []
    stable: list[float] = []

    def decide(seen: SimulatedLook) -> bool:
        arms = window.add(seen)
        if arms is None:
            return False
        candidate.append(_rate(arms.candidate))
        stable.append(_rate(arms.stable))
        if len(candidate) % 10:
            return False
        test = mannwhitneyu(candidate[-60:], stable[-60:], alternative="greater")
        return bool(test.pvalue < 0.02)

    return decide


def all_pass() -> Decider:
    """OME's sample: the first 20 requests of the candidate must all pass."""
    requests = 0.0

    def decide(seen: SimulatedLook) -> bool | None:
        nonlocal requests
        if requests >= 20:
            return None
        requests += seen.piece.candidate.requests
        return seen.piece.candidate.failures > 0

    return decide


def rate_ratio_test() -> Decider:
    """`RateRatioTest` of sequential-analysis at the same alpha and margin, on errors alone."""
    rates: Any = importlib.import_module("sequential_analysis.procedures.rates")
    test = rates.RateRatioTest(ALPHA, rho0=1.5, alternative="greater", grid=0)
    state, needed = test.initial_state(), math.log(1 / ALPHA)

    def decide(seen: SimulatedLook) -> bool:
        nonlocal state
        for arm, counts in ((1, seen.piece.candidate), (0, seen.piece.stable)):
            if counts.requests:
                unit = {"arm": arm, "count": round(counts.failures), "exposure": counts.requests}
                state, output = test.step(state, unit)
                if output.log_e_value >= needed:
                    return True
        return False

    return decide


RULES: dict[str, Rule] = {
    "judge": judge,
    "1.5 x": fixed_threshold,
    "Flagger": flagger,
    "Kayenta": kayenta,
    "OME": all_pass,
}
if importlib.util.find_spec("sequential_analysis"):
    RULES["RateRatio"] = rate_ratio_test


class _LeftOut:
    """The judges that leave one voter out, told of the slices when a verdict asks for them.

    A verdict asks for none before all traffic breaks a criterion, and for no other once one does
    not find the breach. `Judge.advance` tells all of them at each look, to the same verdicts.
    """

    def __init__(self) -> None:
        self.totals: dict[str, Arms] = {}
        self._pieces: list[Slice] = []
        self._states: dict[str, tuple[JudgeState, int]] = {}

    def add(self, piece: Slice) -> None:
        """Keep a slice, and count its voters in."""
        self._pieces.append(piece)
        for voter, arms in piece.voters.items():
            self.totals[voter] = self.totals.get(voter, NO_ARMS) + arms

    def __getitem__(self, voter: str) -> JudgeState:
        state, told = self._states.get(voter, (JudgeState(), 0))
        for piece in self._pieces[told:]:
            state = JUDGE.advance_without(state, piece, voter)
        self._states[voter] = state, len(self._pieces)
        return state


class _Window:
    """Looks put together until both arms have the requests and the time is over."""

    def __init__(self, *, requests: float, seconds: float = 0.0) -> None:
        self._requests, self._seconds = requests, seconds
        self._arms, self._begun = NO_ARMS, 0.0

    def add(self, one: SimulatedLook) -> Arms | None:
        """The window that a look completes."""
        self._arms = self._arms + one.piece
        enough = self._arms.least("requests") >= self._requests
        if not enough or one.end_s - self._begun < self._seconds:
            return None
        whole, self._arms, self._begun = self._arms, NO_ARMS, one.end_s
        return whole


def _rate(counts: Any) -> float:
    return counts.failures / counts.requests
