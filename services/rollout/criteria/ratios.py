"""Relative criteria: the candidate's share or mean against stable's, by a margin. Pure."""

# pyright: strict
from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import ClassVar

from typing_extensions import override

from services.rollout import eprocess
from services.rollout.counts import Arms, JudgeState, Whole
from services.rollout.criteria.criterion import EProcessCriterion, Look, rate_stakes, shares
from services.rollout.verdict import CriterionResult


def rate_addends(
    margin: float, block: Arms | None, whole: Whole, part: str
) -> eprocess.LogWealth | None:
    """The conditional test: whose hit is the next, given both arms' totals of a block."""
    if block is None:
        return None
    candidate, stable = block.candidate, block.stable
    return eprocess.rate_ratio(
        margin,
        (getattr(candidate, whole), getattr(candidate, part)),
        (getattr(stable, whole), getattr(stable, part)),
    )


def score_addends(margin: float, block: Arms | None, expected: float) -> eprocess.LogWealth | None:
    """A likelihood ratio of both arms' means in a block of scores."""
    if block is None:
        return None
    candidate, stable = block.candidate, block.stable
    return eprocess.mean_ratio(
        margin,
        expected,
        (candidate.scores, min(candidate.score_sum, candidate.scores)),
        (stable.scores, min(stable.score_sum, stable.scores)),
    )


class RateRatio(EProcessCriterion):
    """A share of the candidate's at most `margin` times stable's."""

    by_voter = True
    part: ClassVar[str]
    words: ClassVar[str]

    @cached_property
    @override
    def stakes(self) -> eprocess.LogWealth:
        return rate_stakes(self.statistic)

    @property
    @abstractmethod
    def margin(self) -> float:
        """How many times stable's share is still kept."""

    @override
    def addends(self, state: JudgeState, look: Look) -> eprocess.LogWealth | None:
        """See `rate_addends`."""
        block = look.blocks.get(self.whole)
        return block and rate_addends(self.margin, block, self.whole, self.part)

    @override
    def result(self, state: JudgeState, error_limit: float | None) -> CriterionResult | None:
        return self.says(
            state,
            values=shares(state.totals, self.whole, self.part),
            rule=f"more than {self.margin:g} times stable's {self.words}",
        )


class ErrorRatio(RateRatio):
    """Error rate at most `errorMargin` times stable's."""

    name = "errors"
    alpha_weight = 9.0
    part = "failures"
    words = "error rate"

    @property
    @override
    def margin(self) -> float:
        return self.settings.error_margin


class SlowRatio(RateRatio):
    """Slow share at most `slowMargin` times stable's: it decides where stable breaks the limit too."""

    name = "slow_ratio"
    part = "slow"
    words = "slow share"

    @property
    @override
    def margin(self) -> float:
        return self.settings.slow_margin


class StallRatio(RateRatio):
    """Share of streams with a gap over 2,000 ms between tokens at most `stallMargin` times stable's."""

    name = "stalls"
    whole = "streams"
    part = "stalls"
    words = "share of streams with a token gap over 2,000 ms"

    @property
    @override
    def margin(self) -> float:
        return self.settings.stall_margin


class ScoreRatio(EProcessCriterion):
    """Mean score at least `margin` times stable's."""

    by_voter = True
    alternatives = eprocess.MEAN_ALTERNATIVES
    whole = "scores"
    carried_by = "scores"

    @property
    @abstractmethod
    def margin(self) -> float:
        """What part of stable's mean is enough."""

    @override
    def addends(self, state: JudgeState, look: Look) -> eprocess.LogWealth | None:
        """See `score_addends`."""
        return score_addends(
            self.margin, look.blocks.get(self.whole), look.expected.get(self.whole, 0.5)
        )

    @override
    def result(self, state: JudgeState, error_limit: float | None) -> CriterionResult | None:
        return self.says(
            state,
            values=shares(state.totals, "scores", "score_sum"),
            rule=f"satisfaction below {self.margin:g} times stable's",
        )


class Satisfaction(ScoreRatio):
    """Mean score at least `satisfactionMargin` times stable's."""

    name = "satisfaction"
    alpha_weight = 2.0

    @property
    @override
    def margin(self) -> float:
        return self.settings.satisfaction_margin


class BelowBaseline(ScoreRatio):
    """Mean score at least stable's own, where the strategy asks for that."""

    name = "below_baseline"
    alpha_weight = 2.0

    @property
    @override
    def margin(self) -> float:
        return 1.0

    @override
    def result(self, state: JudgeState, error_limit: float | None) -> CriterionResult | None:
        return super().result(state, error_limit) if self.settings.below_baseline else None
