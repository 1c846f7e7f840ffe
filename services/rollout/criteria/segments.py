"""Segment guards: the relative criteria within each segment. Pure."""

# pyright: strict
from __future__ import annotations

from abc import abstractmethod
from math import log
from typing import ClassVar

from typing_extensions import override

from services.rollout import eprocess
from services.rollout.counts import Arms, JudgeState, Whole
from services.rollout.criteria.criterion import (
    BLOCK,
    MAX_SEGMENTS,
    Criterion,
    Look,
    bet,
    block_key,
    log_evidence,
    rate_stakes,
    shares,
)
from services.rollout.criteria.ratios import rate_addends, score_addends
from services.rollout.strategy import JudgeSettings
from services.rollout.verdict import CriterionResult, means_shown, shares_shown

SEGMENT_CRITERIA = 2
"""Criteria that share the segments' alpha."""


class SegmentGuard(Criterion):
    """A relative criterion for each segment by itself: harm to a few must not drown in the whole.

    Its alpha is the strategy's `segmentAlpha`, shared by the guards and the segments.
    """

    whole: ClassVar[Whole]
    part: ClassVar[str]

    @classmethod
    @override
    def shares_alpha(cls, settings: JudgeSettings) -> bool:
        return False

    @property
    def threshold(self) -> float:
        """Log of the evidence that decides in one segment."""
        return log(SEGMENT_CRITERIA * MAX_SEGMENTS / self.settings.segment_alpha)

    @property
    @abstractmethod
    def stakes(self) -> eprocess.LogWealth:
        """The log-wealths of a segment before any data."""

    @abstractmethod
    def segment_addends(self, block: Arms | None, expected: float) -> eprocess.LogWealth | None:
        """What a segment's block adds to its log-wealths."""

    @abstractmethod
    def rule(self) -> str:
        """What would be wrong, in words."""

    @override
    def advance(self, state: JudgeState, look: Look) -> JudgeState:
        for segment in look.piece.segments:
            key = block_key(self.whole, segment)
            addends = self.segment_addends(look.blocks.get(key), look.expected.get(key, 0.5))
            if addends is not None:
                state = bet(state, f"{self.name}:{segment}", self.stakes, addends)
        return state

    @override
    def result(self, state: JudgeState, error_limit: float | None) -> CriterionResult | None:
        """Result of the segment with the most evidence; None without segments."""
        found = [
            (log_evidence(state, f"{self.name}:{segment}"), segment)
            for segment, arms in state.segments.items()
            if arms.least(self.whole) >= BLOCK[self.whole]
        ]
        if not found:
            return None
        log_e, segment = max(found)
        arms = state.segments[segment]
        values = shares(arms, self.whole, self.part)
        counts = (getattr(arms.candidate, self.whole), getattr(arms.stable, self.whole))
        in_words = means_shown if self.whole == "scores" else shares_shown
        return CriterionResult.of(
            self.name,
            breached=log_e >= self.threshold,
            values=values,
            counts=counts,
            log_e=log_e,
            threshold=self.threshold,
            rule=self.rule(),
            shown=lambda: [f"segment {segment}", *in_words(values, counts, self.whole)],
        )


class SegmentErrors(SegmentGuard):
    """Error rate of each segment at most `errorMargin` times stable's there."""

    name = "segment_errors"
    whole = "requests"
    part = "failures"

    @property
    @override
    def stakes(self) -> eprocess.LogWealth:
        return rate_stakes(self.statistic)

    @override
    def segment_addends(self, block: Arms | None, expected: float) -> eprocess.LogWealth | None:
        return rate_addends(self.settings.error_margin, block, self.whole, self.part)

    @override
    def rule(self) -> str:
        return f"more than {self.settings.error_margin:g} times stable's error rate in a segment"


class SegmentSatisfaction(SegmentGuard):
    """Mean score of each segment at least `satisfactionMargin` times stable's there."""

    name = "segment_satisfaction"
    whole = "scores"
    carried_by = "scores"
    part = "score_sum"

    @property
    @override
    def stakes(self) -> eprocess.LogWealth:
        return eprocess.none_yet(eprocess.MEAN_ALTERNATIVES)

    @override
    def segment_addends(self, block: Arms | None, expected: float) -> eprocess.LogWealth | None:
        return score_addends(self.settings.satisfaction_margin, block, expected)

    @override
    def rule(self) -> str:
        return (
            f"satisfaction below {self.settings.satisfaction_margin:g} times stable's in a segment"
        )
