"""The judge: from slices of both arms' counts to a verdict. Pure; knows neither clock nor source.

Each criterion keeps an e-process (see `eprocess`). The probability that a candidate that keeps
all its limits is ever condemned in a rollout is at most `alpha`, which the criteria share evenly.
"""

# pyright: strict
from __future__ import annotations

from math import log

from services.rollout import eprocess
from services.rollout.counts import (
    ArmCounts,
    Baseline,
    FailureRun,
    JudgeState,
    KeyTest,
    Slice,
)
from services.rollout.strategy import JudgeSettings
from services.rollout.verdict import CriterionResult, CriterionState, Verdict, find, ratio
from shared.contracts.events.base import WEIGHT_SCALE
from shared.contracts.events.rollouts import AnalysisOutcome

CRITERIA = (
    "errors",
    "error_limit",
    "slow",
    "crashes",
    "satisfaction",
    "below_baseline",
    "bake_errors",
    "bake_satisfaction",
)
"""What shares alpha. The bake criteria replace the concurrent ones once nobody is on stable."""

RATE_BLOCK = 1
"""Requests of each arm that make a block for the error criterion: waiting costs seconds."""
SCORE_BLOCK = 3
"""Scores of each arm that make a block: single ones would waste what the other arm has."""
MAX_INTERVALS = 16
"""Weights that the sample-ratio test shares its alpha between."""


class Judge:
    """The criteria of one rollout."""

    def __init__(self, settings: JudgeSettings, error_limits: tuple[float, ...]) -> None:
        self._settings = settings
        self._error_limits = error_limits
        self._alpha = settings.alpha / len(CRITERIA)
        self._threshold = log(1 / self._alpha)
        self._limit_threshold = log(max(1, len(error_limits)) / self._alpha)
        # A frozen limit can be wrong too: half of the criterion's alpha is for that.
        self._bake_threshold = log(2 / self._alpha)
        self._keys_threshold = log(MAX_INTERVALS / settings.sample_ratio_alpha)

    def advance(self, state: JudgeState, piece: Slice) -> JudgeState:
        """The state after one more slice."""
        wealth = dict(state.wealth)
        candidate = piece.candidate
        for limit in self._error_limits:
            self._limit(wealth, limit_key(limit), limit, candidate.requests, candidate.failures)
        self._limit(wealth, "slow", self._settings.slow_share, candidate.requests, candidate.slow)
        self._limit(
            wealth, "crashes", self._settings.crash_share, candidate.requests, candidate.crashes
        )
        baseline = state.baseline
        if piece.bake:
            baseline = baseline or self._freeze(state.totals.stable)
            self._bake(wealth, baseline, candidate)
        return JudgeState(
            looks=state.looks + 1,
            totals=state.totals + piece,
            rates=self._advance_rates(wealth, state.rates + piece),
            scores=self._advance_scores(wealth, state.scores + piece, state),
            wealth=wealth,
            keys=self._advance_keys(state.keys, piece),
            run=_advance_run(state.run, piece),
            baseline=baseline,
        )

    def verdict(self, state: JudgeState, *, error_limit: float | None) -> Verdict:
        """What the evidence says now; `error_limit` is that of the present step."""
        results = [
            self._errors(state),
            self._share(state, "slow", self._settings.slow_share, "slow"),
            self._share(state, "crashes", self._settings.crash_share, "crashes"),
            self._satisfaction(state, "satisfaction", self._settings.satisfaction_margin),
            self._run(state.run),
            self._sample_ratio(state.keys),
        ]
        if error_limit is not None:
            results.append(self._share(state, "error_limit", error_limit, "failures"))
        if self._settings.below_baseline:
            results.append(self._satisfaction(state, "below_baseline", 1.0))
        if state.baseline is not None:
            results.extend(self._bake_results(state, state.baseline))
        for outcome, wanted in (
            (AnalysisOutcome.failed, CriterionState.breached),
            (AnalysisOutcome.inconclusive, CriterionState.held),
        ):
            said = [result.text for result in results if result.state is wanted]
            if said:
                return Verdict(outcome, "; ".join(said), tuple(results))
        return Verdict(AnalysisOutcome.successful, "every criterion is kept", tuple(results))

    def _limit(
        self, wealth: dict[str, eprocess.LogWealth], key: str, limit: float, n: float, hits: float
    ) -> None:
        before = wealth.get(key) or eprocess.none_yet(eprocess.ODDS_ALTERNATIVES)
        wealth[key] = eprocess.added(before, eprocess.above_limit(limit, n, min(hits, n)))

    def _advance_rates(self, wealth: dict[str, eprocess.LogWealth], block: Slice) -> Slice:
        """Bet on a block of requests once both arms have some; returns what waits on."""
        before = wealth.get("errors") or eprocess.none_yet(eprocess.RATE_ALTERNATIVES)
        wealth["errors"] = before
        candidate, stable = block.candidate, block.stable
        if min(candidate.requests, stable.requests) < RATE_BLOCK:
            return block
        wealth["errors"] = eprocess.added(
            before,
            eprocess.rate_ratio(
                self._settings.error_margin,
                (candidate.requests, candidate.failures),
                (stable.requests, stable.failures),
            ),
        )
        return Slice()

    def _advance_scores(
        self, wealth: dict[str, eprocess.LogWealth], block: Slice, state: JudgeState
    ) -> Slice:
        """Bet on a block of scores; the stable mean from before the block sets the bets.

        Whether a block ends depends on how many scores came and on no score.
        """
        candidate, stable = block.candidate, block.stable
        margins = {"satisfaction": self._settings.satisfaction_margin, "below_baseline": 1.0}
        for key in margins:
            wealth.setdefault(key, eprocess.none_yet(eprocess.MEAN_ALTERNATIVES))
        whole = all(0 <= arm.score_sum <= arm.scores + 1e-9 for arm in (candidate, stable))
        if min(candidate.scores, stable.scores) < SCORE_BLOCK or not whole:
            return block
        before = state.totals.stable
        waiting = state.scores.stable
        expected = (before.score_sum - waiting.score_sum + 1) / (before.scores - waiting.scores + 2)
        for key, margin in margins.items():
            addends = eprocess.mean_ratio(
                margin,
                expected,
                (candidate.scores, min(candidate.score_sum, candidate.scores)),
                (stable.scores, min(stable.score_sum, stable.scores)),
            )
            wealth[key] = eprocess.added(wealth[key], addends)
        return Slice()

    def _advance_keys(self, test: KeyTest, piece: Slice) -> KeyTest:
        """Test one stretch of constant weight; another weight starts another test.

        A key that several routers counted is one draw: the wealth is taken to the power of
        1/copies, which keeps its expectation at most 1 (Jensen).
        """
        weight = piece.keys_weight
        if not 0 < weight < WEIGHT_SCALE:
            return test
        if weight != test.weight:
            test = KeyTest(weight=weight, intervals=test.intervals + 1)
        addends = eprocess.off_share(weight / WEIGHT_SCALE, piece.candidate.keys, piece.stable.keys)
        shared = tuple(addend / piece.keys_copies for addend in addends)
        return test.model_copy(
            update={
                "candidate": test.candidate + piece.candidate.keys,
                "stable": test.stable + piece.stable.keys,
                "wealth": eprocess.added(test.wealth, shared),
            }
        )

    def _freeze(self, stable: ArmCounts) -> Baseline:
        """The worst that the parent's figures allow, as limits for a candidate on its own."""
        error_limit = score_limit = None
        if stable.requests:
            failures = min(stable.failures, stable.requests)
            bound = eprocess.upper_bound(stable.requests, failures, self._alpha / 2)
            error_limit = min(self._settings.error_margin * bound, 0.999)
        if stable.scores:
            total = min(stable.score_sum, stable.scores)
            bound = eprocess.lower_bound(stable.scores, total, self._alpha / 2)
            score_limit = self._settings.satisfaction_margin * bound
        return Baseline(error_limit=error_limit, score_limit=score_limit)

    def _bake(
        self, wealth: dict[str, eprocess.LogWealth], baseline: Baseline, candidate: ArmCounts
    ) -> None:
        if baseline.error_limit is not None:
            self._limit(
                wealth,
                "bake_errors",
                baseline.error_limit,
                candidate.requests,
                candidate.failures,
            )
        if baseline.score_limit is not None and 0 <= candidate.score_sum <= candidate.scores:
            before = wealth.get("bake_satisfaction") or eprocess.none_yet(
                eprocess.ODDS_ALTERNATIVES
            )
            addends = eprocess.below_limit(
                baseline.score_limit, candidate.scores, candidate.score_sum
            )
            wealth["bake_satisfaction"] = eprocess.added(before, addends)

    def _errors(self, state: JudgeState) -> CriterionResult:
        candidate, stable = state.totals.candidate, state.totals.stable
        log_e = _log_e(state, "errors")
        return find(
            "errors",
            breached=log_e >= self._threshold,
            values=(
                ratio(candidate.failures, candidate.requests),
                ratio(stable.failures, stable.requests),
            ),
            counts=(candidate.requests, stable.requests),
            log_e=log_e,
            threshold=self._threshold,
            rule=f"more than {self._settings.error_margin:g} times stable's error rate",
        )

    def _satisfaction(self, state: JudgeState, key: str, margin: float) -> CriterionResult:
        candidate, stable = state.totals.candidate, state.totals.stable
        log_e = _log_e(state, key)
        return find(
            key,
            breached=log_e >= self._threshold,
            values=(
                ratio(candidate.score_sum, candidate.scores),
                ratio(stable.score_sum, stable.scores),
            ),
            counts=(candidate.scores, stable.scores),
            log_e=log_e,
            threshold=self._threshold,
            rule=f"satisfaction below {margin:g} times stable's",
        )

    def _share(
        self, state: JudgeState, criterion: str, limit: float, field: str
    ) -> CriterionResult:
        """An absolute limit: the candidate beyond it, and stable not, is a breach."""
        candidate, stable = state.totals.candidate, state.totals.stable
        is_error_limit = criterion == "error_limit"
        log_e = _log_e(state, limit_key(limit) if is_error_limit else criterion)
        threshold = self._limit_threshold if is_error_limit else self._threshold
        value_c = ratio(getattr(candidate, field), candidate.requests)
        value_s = ratio(getattr(stable, field), stable.requests)
        beyond = log_e >= threshold
        both = beyond and value_s is not None and value_s > limit
        name = {"slow": "slow share", "crashes": "crash share"}.get(field, "error rate")
        return find(
            criterion,
            breached=beyond and not both,
            held=both,
            values=(value_c, value_s),
            counts=(candidate.requests, stable.requests),
            log_e=log_e,
            threshold=threshold,
            rule=f"{name} above {limit:.2%}" + (" on both arms: see to the engine" if both else ""),
        )

    def _run(self, run: FailureRun) -> CriterionResult:
        """The hard stop, unless stable fails in the same way at the same time."""
        limit = self._settings.consecutive_failures
        reached = run.failures >= limit
        shared = run.stable_requests > 0 and run.stable_failures >= run.stable_requests
        return find(
            "consecutive_failures",
            breached=reached and not shared,
            held=reached and shared,
            values=(run.failures, None),
            counts=(run.failures, run.stable_requests),
            log_e=0.0,
            threshold=0.0,
            rule=f"{limit} failures in a row or more"
            + (", and stable fails too: see to the engine" if reached and shared else ""),
        )

    def _sample_ratio(self, test: KeyTest) -> CriterionResult:
        log_e = eprocess.mixture(test.wealth)
        seen = test.candidate + test.stable
        return find(
            "sample_ratio",
            breached=False,
            held=log_e >= self._keys_threshold,
            values=(ratio(test.candidate, seen), test.weight / WEIGHT_SCALE),
            counts=(test.candidate, test.stable),
            log_e=log_e,
            threshold=self._keys_threshold,
            rule="keys are not split as the weight says, so the arms cannot be compared",
        )

    def _bake_results(self, state: JudgeState, baseline: Baseline) -> list[CriterionResult]:
        candidate = state.totals.candidate
        found: list[CriterionResult] = []
        if baseline.error_limit is not None:
            found.append(
                find(
                    "bake_errors",
                    breached=_log_e(state, "bake_errors") >= self._bake_threshold,
                    values=(ratio(candidate.failures, candidate.requests), baseline.error_limit),
                    counts=(candidate.requests, 0.0),
                    log_e=_log_e(state, "bake_errors"),
                    threshold=self._bake_threshold,
                    rule=f"error rate above {baseline.error_limit:.2%}, from the parent's figures",
                )
            )
        if baseline.score_limit is not None:
            found.append(
                find(
                    "bake_satisfaction",
                    breached=_log_e(state, "bake_satisfaction") >= self._bake_threshold,
                    values=(ratio(candidate.score_sum, candidate.scores), baseline.score_limit),
                    counts=(candidate.scores, 0.0),
                    log_e=_log_e(state, "bake_satisfaction"),
                    threshold=self._bake_threshold,
                    rule=f"satisfaction below {baseline.score_limit:.3f}, "
                    "from the parent's figures",
                )
            )
        return found


def limit_key(limit: float) -> str:
    """Where the wealth against one error limit is kept."""
    return f"error_limit:{limit:g}"


def _advance_run(run: FailureRun, piece: Slice) -> FailureRun:
    """Failures in a row: within a slice the order is unknown, so any success ends the run."""
    candidate, stable = piece.candidate, piece.stable
    if candidate.requests > candidate.failures:
        return FailureRun()
    return FailureRun(
        failures=run.failures + candidate.failures,
        stable_requests=run.stable_requests + stable.requests,
        stable_failures=run.stable_failures + stable.failures,
    )


def _log_e(state: JudgeState, key: str) -> float:
    wealth = state.wealth.get(key)
    return eprocess.mixture(wealth) if wealth else 0.0
