"""The judge: from slices of both arms' counts to a verdict. Pure; knows neither clock nor source.

The probability that a candidate that keeps all its criteria is ever condemned in a rollout is at
most the strategy's `alpha`, however often one looks (see `criteria` and `eprocess`).
"""

# pyright: strict
from __future__ import annotations

from services.rollout.counts import JudgeState, Slice
from services.rollout.criteria import STATISTIC, criteria
from services.rollout.criteria.criterion import opened
from services.rollout.strategy import JudgeSettings
from services.rollout.verdict import CriterionState, Verdict
from shared.contracts.events.rollouts import AnalysisOutcome


class Judge:
    """The criteria of one rollout. `statistic` is the version of the rule that shares alpha."""

    def __init__(
        self,
        settings: JudgeSettings,
        error_limits: tuple[float, ...],
        statistic: int = STATISTIC,
    ) -> None:
        self._criteria = criteria(settings, error_limits, statistic)

    def advance(self, state: JudgeState, piece: Slice) -> JudgeState:
        """The state after one more slice."""
        state, look = opened(state, piece)
        for criterion in self._criteria:
            state = criterion.advance(state, look)
        return state

    def verdict(self, state: JudgeState, *, error_limit: float | None) -> Verdict:
        """Verdict on the evidence so far; `error_limit` is that of the present step."""
        said = (criterion.result(state, error_limit) for criterion in self._criteria)
        results = tuple(result for result in said if result is not None)
        for outcome, wanted in (
            (AnalysisOutcome.failed, CriterionState.breached),
            (AnalysisOutcome.inconclusive, CriterionState.held),
        ):
            texts = [result.text for result in results if result.state is wanted]
            if texts:
                return Verdict(outcome, "; ".join(texts), results)
        return Verdict(AnalysisOutcome.successful, "every criterion is kept", results)
