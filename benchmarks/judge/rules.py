"""Rules that decide on a rollout's looks: the judge's own, and those of the systems beside it.

Each is `rule(looks, level) -> look`: the first look (from 0) at which it takes the candidate back,
None where it never does. The peers' rules see the same slices; a window of theirs is as many looks
as it takes.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from scipy.stats import mannwhitneyu

from benchmarks.judge.crowd import SimulatedLook
from services.rollout.counts import Arms, JudgeState
from services.rollout.judge import Judge
from services.rollout.strategy import JudgeSettings
from shared.contracts.events.rollouts import AnalysisOutcome

ERROR_LIMITS = {0.05: 0.05, 0.2: 0.03, 0.5: 0.02}
"""The default strategy's error limit at each of its weights."""
ALPHA = 0.01
JUDGE = Judge(JudgeSettings(alpha=ALPHA), tuple(ERROR_LIMITS.values()))

Rule = Callable[[Iterable[SimulatedLook]], int | None]


def judge(looks: Iterable[SimulatedLook]) -> int | None:
    """Ratchet's judge with all criteria, each step's limit in force."""
    state = JudgeState()
    for look, seen in enumerate(looks):
        state = JUDGE.advance(state, seen.piece)
        verdict = JUDGE.verdict(state, error_limit=ERROR_LIMITS[seen.weight])
        if verdict.outcome is AnalysisOutcome.failed:
            return look
    return None


def fixed_threshold(looks: Iterable[SimulatedLook]) -> int | None:
    """Each time both arms have 100 requests: candidate's error rate above 1.5 times stable's."""
    for look, window in _windows(looks, requests=100):
        if _rate(window.candidate) > 1.5 * _rate(window.stable):
            return look
    return None


def flagger(looks: Iterable[SimulatedLook]) -> int | None:
    """Flagger's defaults: success rate of a minute at least 99 %, five failed checks in all."""
    failed = 0
    for look, window in _windows(looks, requests=1, seconds=60.0):
        failed += _rate(window.candidate) > 0.01
        if failed >= 5:
            return look
    return None


def kayenta(looks: Iterable[SimulatedLook]) -> int | None:
    """Kayenta's Mann-Whitney test of error rates a minute, 98 % sure, at every tenth minute."""
    candidate: list[float] = []
    stable: list[float] = []
    for look, window in _windows(looks, requests=1, seconds=60.0):
        candidate.append(_rate(window.candidate))
        stable.append(_rate(window.stable))
        if len(candidate) % 10 == 0:
            test = mannwhitneyu(candidate[-60:], stable[-60:], alternative="greater")
            if test.pvalue < 0.02:
                return look
    return None


def all_pass(looks: Iterable[SimulatedLook]) -> int | None:
    """OME's sample: the first 20 requests of the candidate must all pass."""
    seen = 0.0
    for look, one in enumerate(looks):
        if seen >= 20:
            return None
        if one.piece.candidate.failures:
            return look
        seen += one.piece.candidate.requests
    return None


def rate_ratio_test(looks: Iterable[SimulatedLook]) -> int | None:
    """`RateRatioTest` of sequential-analysis 0.4.0 at the same alpha and margin, on errors alone."""
    rates: Any = importlib.import_module("sequential_analysis.procedures.rates")
    test = rates.RateRatioTest(ALPHA, rho0=1.5, alternative="greater", grid=0)
    state, needed = test.initial_state(), math.log(1 / ALPHA)
    for look, one in enumerate(looks):
        for arm, counts in ((1, one.piece.candidate), (0, one.piece.stable)):
            if counts.requests:
                unit = {"arm": arm, "count": round(counts.failures), "exposure": counts.requests}
                state, output = test.step(state, unit)
                if output.log_e_value >= needed:
                    return look
    return None


RULES: dict[str, Rule] = {
    "judge": judge,
    "1.5 x": fixed_threshold,
    "Flagger": flagger,
    "Kayenta": kayenta,
    "OME": all_pass,
}
if importlib.util.find_spec("sequential_analysis"):
    RULES["RateRatio"] = rate_ratio_test


def _windows(
    looks: Iterable[SimulatedLook], *, requests: float, seconds: float = 0.0
) -> Iterator[tuple[int, Arms]]:
    """Looks put together until both arms have the requests and the time is over."""
    window, begun = Arms(), 0.0
    for look, one in enumerate(looks):
        window = window + one.piece
        if window.least("requests") >= requests and one.end_s - begun >= seconds:
            yield look, window
            window, begun = Arms(), one.end_s


def _rate(counts: Any) -> float:
    return counts.failures / counts.requests
