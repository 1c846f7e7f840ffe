"""Behaviour criteria: what answers do, by rule, against the concurrent stable arm. Pure.

Each is advice unless the strategy makes it a guard: then it shares the strategy's alpha.
"""

# pyright: strict
from __future__ import annotations

from functools import cached_property
from typing import ClassVar, Literal

from typing_extensions import override

from services.rollout import eprocess
from services.rollout.counts import JudgeState
from services.rollout.criteria.criterion import Look
from services.rollout.criteria.ratios import RateRatio, rate_addends
from services.rollout.strategy import BehaviourRule, JudgeSettings
from services.rollout.verdict import CriterionResult, means_shown

Setting = Literal[
    "refusals", "cuts", "tool_failures", "questions", "language_switches", "length", "latency"
]
LATE: tuple[str, ...] = ("over_250ms", "over_500ms", "over_1s")
"""Figures of answers later than an edge."""


class Behaviour(RateRatio):
    """A share of the answers at most its margin times stable's."""

    by_voter = False
    whole = "answers"
    setting: ClassVar[Setting]

    @classmethod
    @override
    def shares_alpha(cls, settings: JudgeSettings) -> bool:
        return _rule(settings, cls.setting).guard

    @property
    @override
    def advisory(self) -> bool:
        return not _rule(self.settings, self.setting).guard

    @property
    @override
    def margin(self) -> float:
        return _rule(self.settings, self.setting).margin

    @override
    def result(self, state: JudgeState, error_limit: float | None) -> CriterionResult | None:
        """None while no answer of either arm was read."""
        if not state.totals.least(self.whole):
            return None
        return super().result(state, error_limit)


class Refusals(Behaviour):
    """Share of answers that refuse."""

    name = part = setting = "refusals"
    words = "share of refusals"


class Cuts(Behaviour):
    """Share of answers that are cut at the limit of tokens."""

    name = part = setting = "cuts"
    words = "share of cut answers"


class ToolFailures(Behaviour):
    """Share of tool-calling answers with an invalid call."""

    name = part = setting = "tool_failures"
    whole = "tool_calls"
    words = "share of invalid tool calls"


class Questions(Behaviour):
    """Share of answers that are a clarifying question."""

    name = part = setting = "questions"
    words = "share of clarifying questions"


class LanguageSwitches(Behaviour):
    """Share of answers in another language than the user's."""

    name = part = setting = "language_switches"
    words = "share of answers in another language"


class Length(Behaviour):
    """Mean length of answers, each as a share of 8,192 characters and at most 1.

    `eprocess.rate_ratio` holds for values in [0, 1], as x^y <= 1 - y + y*x there.
    """

    name = setting = "length"
    part = "length_sum"
    words = "length of answers"

    @override
    def shown(
        self, values: tuple[float | None, float | None], counts: tuple[float, float]
    ) -> list[str]:
        scaled = tuple(None if value is None else value * LENGTH_SCALE for value in values)
        return means_shown((scaled[0], scaled[1]), counts, "answers", digits=0, unit=" characters")


class Latency(Behaviour):
    """Share of answers later than 250, 500 or 1,000 ms: a median that doubles below the limit.

    The mean of one e-process for each edge, which is an e-process against "at no edge".
    """

    name = setting = "latency"
    whole = "requests"
    part = "over_500ms"
    words = "share of answers later than 250, 500 or 1,000 ms"

    @cached_property
    @override
    def stakes(self) -> eprocess.LogWealth:
        return super().stakes * len(LATE)

    @override
    def addends(self, state: JudgeState, look: Look) -> eprocess.LogWealth | None:
        """The addends of every edge, one after the other."""
        block = look.blocks.get(self.whole)
        found = [rate_addends(self.margin, block, self.whole, part) for part in LATE]
        return None if block is None else tuple([one for each in found if each for one in each])

    @override
    def shown(
        self, values: tuple[float | None, float | None], counts: tuple[float, float]
    ) -> list[str]:
        return [f"later than 500 ms: {text}" for text in super().shown(values, counts)]


LENGTH_SCALE = 8_192
"""Characters that count as length 1 (`services/router/behaviour.py`)."""


def _rule(settings: JudgeSettings, name: Setting) -> BehaviourRule:
    return getattr(settings.behaviour, name)
