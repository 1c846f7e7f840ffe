"""Hard stop and sample-ratio mismatch: criteria with an error budget of their own. Pure."""

# pyright: strict
from __future__ import annotations

from math import log

from typing_extensions import override

from services.rollout import eprocess
from services.rollout.counts import NO_RUN, FailureRun, JudgeState, KeyTest
from services.rollout.criteria.criterion import Criterion, Look
from services.rollout.strategy import JudgeSettings
from services.rollout.verdict import CriterionResult, ratio
from shared.contracts.events.base import WEIGHT_SCALE

MAX_INTERVALS = 16
"""Weights that the sample-ratio test shares its alpha between."""


class FailureStreak(Criterion):
    """Hard stop: `consecutiveFailures` failures in a row, unless stable fails likewise."""

    by_voter = True
    name = "consecutive_failures"

    @classmethod
    @override
    def shares_alpha(cls, settings: JudgeSettings) -> bool:
        return False

    @override
    def advance(self, state: JudgeState, look: Look) -> JudgeState:
        """Within a slice the order is unknown, so any success ends the streak."""
        candidate, stable = look.piece.candidate, look.piece.stable
        if candidate.requests > candidate.failures:
            return state if state.run is NO_RUN else state.but(run=NO_RUN)
        return state.but(
            run=FailureRun(
                failures=state.run.failures + candidate.failures,
                stable_requests=state.run.stable_requests + stable.requests,
                stable_failures=state.run.stable_failures + stable.failures,
            )
        )

    @override
    def result(self, state: JudgeState, error_limit: float | None) -> CriterionResult:
        run, limit = state.run, self.settings.consecutive_failures
        reached = run.failures >= limit
        shared = run.stable_requests > 0 and run.stable_failures >= run.stable_requests
        return CriterionResult.of(
            self.name,
            breached=reached and not shared,
            held=reached and shared,
            values=(run.failures, None),
            counts=(run.failures, run.stable_requests),
            log_e=0.0,
            threshold=0.0,
            shown=lambda: [f"{run.failures:g} in a row"],
            rule=f"{limit} failures in a row or more"
            + (", and stable fails too: see to the engine" if reached and shared else ""),
        )


class SampleRatio(Criterion):
    """Sample-ratio mismatch: distinct keys split by the weight. Holds, never fails."""

    name = "sample_ratio"

    @classmethod
    @override
    def shares_alpha(cls, settings: JudgeSettings) -> bool:
        return False

    @override
    def advance(self, state: JudgeState, look: Look) -> JudgeState:
        """Test one stretch of constant weight; another weight starts another test.

        A key that several routers counted is one draw: the wealth is taken to the power of
        1/copies, which keeps its expectation at most 1 (Jensen).
        """
        piece, test = look.piece, state.keys
        weight = piece.keys_weight
        if not 0 < weight < WEIGHT_SCALE:
            return state
        if weight != test.weight:
            test = KeyTest(weight=weight, intervals=test.intervals + 1)
        share = weight / WEIGHT_SCALE
        addends = eprocess.off_share(share, piece.candidate.keys, piece.stable.keys)
        shared = tuple(addend / piece.keys_copies for addend in addends)
        update = {
            "candidate": test.candidate + piece.candidate.keys,
            "stable": test.stable + piece.stable.keys,
            "wealth": eprocess.added(test.wealth, shared),
        }
        return state.but(keys=test.model_copy(update=update))

    @override
    def result(self, state: JudgeState, error_limit: float | None) -> CriterionResult:
        test = state.keys
        log_e = eprocess.mixture(test.wealth)
        threshold = log(MAX_INTERVALS / self.settings.sample_ratio_alpha)
        seen, share = test.candidate + test.stable, test.weight / WEIGHT_SCALE
        return CriterionResult.of(
            self.name,
            breached=False,
            held=log_e >= threshold,
            values=(ratio(test.candidate, seen), share),
            counts=(test.candidate, test.stable),
            log_e=log_e,
            threshold=threshold,
            shown=lambda: (
                [f"candidate {test.candidate / seen:.2%} of {seen:g} keys, weight {share:.2%}"]
                if seen
                else []
            ),
            rule="keys are not split as the weight says, so the arms cannot be compared",
        )
