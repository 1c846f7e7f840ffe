"""Bake criteria: at 100 % the parent's figures stand in for the stable arm. Pure."""

# pyright: strict
from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from math import log

from typing_extensions import override

from services.rollout import eprocess
from services.rollout.counts import ArmCounts, Baseline, JudgeState
from services.rollout.criteria.criterion import EProcessCriterion, Look, bet, shares
from services.rollout.verdict import CriterionResult, ratio


class Bake(EProcessCriterion):
    """At 100 % stable has no users: the limit is its worst allowed figure from before.

    That limit can be wrong too: half of the criterion's alpha is for its bound on stable.
    """

    by_voter = True

    @cached_property
    @override
    def threshold(self) -> float:
        return log(2 / self.alpha)

    @abstractmethod
    def freeze(self, stable: ArmCounts) -> dict[str, float]:
        """The field of `Baseline` that stable's figures give; empty where it has none."""

    @override
    def advance(self, state: JudgeState, look: Look) -> JudgeState:
        if look.begins_bake:
            frozen = self.freeze(look.parent)
            state = state.but(baseline=(state.baseline or Baseline()).model_copy(update=frozen))
        addends = self.addends(state, look) if look.piece.bake else None
        return state if addends is None else bet(state, self.name, self.stakes, addends)


class BakeErrors(Bake):
    """Error rate at most what `errorMargin` allowed over the parent's, once stable has no users."""

    name = "bake_errors"

    @override
    def freeze(self, stable: ArmCounts) -> dict[str, float]:
        if not stable.requests:
            return {}
        failures = min(stable.failures, stable.requests)
        bound = eprocess.upper_bound(stable.requests, failures, self.alpha / 2)
        return {"error_limit": min(self.settings.error_margin * bound, 0.999)}

    @override
    def addends(self, state: JudgeState, look: Look) -> eprocess.LogWealth | None:
        """Bet on the candidate's share alone."""
        if state.baseline is None or state.baseline.error_limit is None:
            return None
        candidate = look.piece.candidate
        failures = min(candidate.failures, candidate.requests)
        return eprocess.above_limit(state.baseline.error_limit, candidate.requests, failures)

    @override
    def result(self, state: JudgeState, error_limit: float | None) -> CriterionResult | None:
        if state.baseline is None or (limit := state.baseline.error_limit) is None:
            return None
        return self.says(
            state,
            values=(shares(state.totals, "requests", "failures")[0], limit),
            rule=f"error rate above {limit:.2%}, from the parent's figures",
            against_limit=True,
        )


class BakeSatisfaction(Bake):
    """Mean score at least what `satisfactionMargin` allowed, once stable has no users."""

    name = "bake_satisfaction"
    whole = "scores"
    carried_by = "scores"

    @override
    def freeze(self, stable: ArmCounts) -> dict[str, float]:
        if not stable.scores:
            return {}
        total = min(stable.score_sum, stable.scores)
        bound = eprocess.lower_bound(stable.scores, total, self.alpha / 2)
        return {"score_limit": self.settings.satisfaction_margin * bound}

    @override
    def addends(self, state: JudgeState, look: Look) -> eprocess.LogWealth | None:
        """Bet on the candidate's mean alone."""
        candidate = look.piece.candidate
        if state.baseline is None or state.baseline.score_limit is None:
            return None
        if not 0 <= candidate.score_sum <= candidate.scores:
            return None
        limit = state.baseline.score_limit
        return eprocess.below_limit(limit, candidate.scores, candidate.score_sum)

    @override
    def result(self, state: JudgeState, error_limit: float | None) -> CriterionResult | None:
        if state.baseline is None or (limit := state.baseline.score_limit) is None:
            return None
        candidate = state.totals.candidate
        return self.says(
            state,
            values=(ratio(candidate.score_sum, candidate.scores), limit),
            rule=f"satisfaction below {limit:.3f}, from the parent's figures",
            against_limit=True,
        )
