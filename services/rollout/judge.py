"""The judge: from slices of both arms' counts to a verdict. Pure; knows neither clock nor source.

The probability that a candidate that keeps all its criteria is ever condemned in a rollout is at
most the strategy's `alpha`, however often one looks (see `criteria` and `eprocess`).
"""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence

from services.rollout.counts import JudgeState, Slice
from services.rollout.criteria import STATISTIC, criteria
from services.rollout.criteria.criterion import Criterion, opened
from services.rollout.strategy import JudgeSettings
from services.rollout.verdict import CriterionResult, CriterionState, Verdict
from services.rollout.voters import deciding_voters, left_out, named, without_voter
from shared.contracts.events.rollouts import AnalysisOutcome


class Judge:
    """The criteria of one rollout. `statistic` is the version of the rule that shares alpha."""

    def __init__(
        self,
        settings: JudgeSettings,
        error_limits: tuple[float, ...],
        statistic: int = STATISTIC,
    ) -> None:
        self._statistic = statistic
        self._criteria = criteria(settings, error_limits, statistic)
        self._by_voter = tuple(one for one in self._criteria if one.by_voter)

    def advance(self, state: JudgeState, piece: Slice) -> JudgeState:
        """The state after one more slice."""
        after = _advanced(self._criteria, state, piece)
        return left_out(state, after, piece, self.advance_without)

    def advance_without(self, state: JudgeState, piece: Slice, voter: str) -> JudgeState:
        """The state of the judge that never sees a voter, after one more slice."""
        return _advanced(self._by_voter, state, without_voter(piece, voter))

    def breaches(self, state: JudgeState, *, error_limit: float | None) -> frozenset[str]:
        """Criteria that the candidate breaks on all traffic, whether or not it rests on one voter."""
        results = (criterion.result(state, error_limit) for criterion in self._criteria)
        return frozenset(
            one.criterion for one in results if one and one.state is CriterionState.breached
        )

    def verdict(self, state: JudgeState, *, error_limit: float | None) -> Verdict:
        """Verdict on the evidence so far; `error_limit` is that of the present step."""
        results = tuple(
            self._supported(criterion, result, state, error_limit)
            for criterion in self._criteria
            if (result := criterion.result(state, error_limit)) is not None
        )
        for outcome, wanted in (
            (AnalysisOutcome.failed, CriterionState.breached),
            (AnalysisOutcome.inconclusive, CriterionState.held),
        ):
            texts = [result.text for result in results if result.state is wanted]
            if texts:
                return Verdict(outcome, "; ".join(texts), results)
        return Verdict(AnalysisOutcome.successful, "every criterion is kept", results)

    def _supported(
        self,
        criterion: Criterion,
        result: CriterionResult,
        state: JudgeState,
        error_limit: float | None,
    ) -> CriterionResult:
        """The result, or a hold in place of a breach that rests on one of the voters."""
        if result.state is not CriterionState.breached:
            return result
        voters = deciding_voters(state, criterion.carried_by, self._statistic)
        if not voters:
            return result
        if not criterion.by_voter:
            return result.held(
                "no verdict without a look at each tenant's part, which is not known"
            )
        for voter in voters:
            other = criterion.result(state.without[voter], error_limit)
            if other is None or other.state is not CriterionState.breached:
                return result.held(f"rests on {named(voter, state)} alone")
        return result


def _advanced(criteria: Sequence[Criterion], state: JudgeState, piece: Slice) -> JudgeState:
    state, look = opened(state, piece)
    for criterion in criteria:
        state = criterion.advance(state, look)
    return state
