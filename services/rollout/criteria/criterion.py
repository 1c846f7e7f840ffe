"""Criterion: one condition that a candidate must keep, and the look that it is told of. Pure."""

# pyright: strict
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log
from typing import ClassVar, get_args

from typing_extensions import override

from services.rollout import eprocess
from services.rollout.counts import (
    NO_ARMS,
    ArmCounts,
    Arms,
    Counted,
    JudgeState,
    Slice,
    Whole,
    unchecked,
)
from services.rollout.strategy import JudgeSettings
from services.rollout.verdict import CriterionResult, means_shown, ratio, shares_shown

BLOCK: dict[Whole, int] = {
    "requests": 1,
    "scores": 3,
    "streams": 1,
    "answers": 1,
    "tool_calls": 1,
}
"""How many of each arm make a block to bet on. Waiting costs seconds; single scores would waste
what the other arm has."""
LAST_WITH_EARLIER_STAKES = 3
WHOLES: tuple[Whole, ...] = get_args(Whole)
BY_SEGMENT: tuple[Whole, ...] = ("requests", "scores")
MAX_SEGMENTS = 9
"""Values of the label `segment` that are tested: eight configured ones and `other`."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is new at one look.

    `blocks` are those that it completes, `expected` the stable mean score from before the block of
    that key, as a bet may not know what it bets on. `parent` is what stable did in the last step
    before this slice.
    """

    piece: Slice
    parent: ArmCounts
    blocks: dict[str, Arms]
    expected: dict[str, float]
    begins_bake: bool


def block_key(whole: Whole, segment: str = "") -> str:
    """The key of a block: what is counted, and of which segment."""
    return f"{whole}/{segment}" if segment else whole


def opened(state: JudgeState, piece: Slice) -> tuple[JudgeState, Look]:
    """The state with a slice counted in, and the look at it that the criteria bet on.

    The state's log-wealths are a copy of its own, which `bet` changes.
    """
    waiting, whole = dict(state.blocks), dict[str, Arms]()
    expected: dict[str, float] = {}
    for what, segment, arms in _parts(state, piece):
        key = block_key(what, segment)
        before = waiting.pop(key, None)
        block = arms if before is None else before + arms
        if what == "scores":
            expected[key] = _expected(state, segment, before)
        # Whether a block ends depends on how many came and on no outcome: else it would bias
        # the bet.
        if block.least(what) >= BLOCK[what] and (what != "scores" or _untorn(block)):
            whole[key] = block
        elif _begun(block, what):
            waiting[key] = block
    look = Look(
        piece=piece,
        parent=state.stage_stable,
        blocks=whole,
        expected=expected,
        begins_bake=piece.bake and state.baseline is None,
    )
    begins_stage = piece.weight not in (0, state.stage_weight)
    segments = dict(state.segments)
    for segment, arms in piece.segments.items():
        if segment in segments or len(segments) < MAX_SEGMENTS:
            segments[segment] = segments.get(segment, NO_ARMS) + arms
    stage = NO_ARMS if begins_stage else _arms(state.stage_candidate, state.stage_stable)
    stage = stage + piece
    after = state.but(
        looks=state.looks + 1,
        totals=state.totals + piece,
        segments=segments,
        stage_weight=piece.weight or state.stage_weight,
        stage_stable=stage.stable,
        stage_candidate=stage.candidate,
        blocks=waiting,
        wealth=dict(state.wealth),
    )
    return after, look


def _parts(state: JudgeState, piece: Slice) -> Iterator[tuple[Whole, str, Arms]]:
    """Each block that a slice adds to, by what is counted and the segment."""
    both = _arms(piece.candidate, piece.stable)
    for what in WHOLES:
        yield what, "", both
    known = len(state.segments)
    for segment, arms in piece.segments.items():
        if segment not in state.segments:
            known += 1
            if known > MAX_SEGMENTS:
                continue
        for what in BY_SEGMENT:
            yield what, segment, arms


def _arms(candidate: ArmCounts, stable: ArmCounts) -> Arms:
    return unchecked(Arms, {"candidate": candidate, "stable": stable})


def _expected(state: JudgeState, segment: str, waiting: Arms | None) -> float:
    total = state.segments.get(segment, NO_ARMS) if segment else state.totals
    before, held = total.stable, (waiting or NO_ARMS).stable
    return (before.score_sum - held.score_sum + 1) / (before.scores - held.scores + 2)


def _untorn(block: Arms) -> bool:
    """Whether sums and counts of scores were scraped together."""
    return all(0 <= arm.score_sum <= arm.scores + 1e-9 for arm in (block.candidate, block.stable))


def _begun(block: Arms, what: Whole) -> bool:
    """Whether a block holds some of what is counted, or a sum of scores whose count comes later."""
    arms = (block.candidate, block.stable)
    return any(getattr(arm, what) or (what == "scores" and arm.score_sum) for arm in arms)


class Criterion(ABC):
    """One condition that a candidate must keep.

    `alpha` is the probability with which this criterion may ever condemn a candidate that keeps it;
    `statistic` the version of the rule that shares alpha and stakes the bets.
    """

    name: ClassVar[str]
    alpha_weight: ClassVar[float] = 1.0
    """How much of the strategy's alpha it takes, beside the other criteria that share it."""
    by_voter: ClassVar[bool] = False
    """Whether its figures are known by voter, so that one can be left out."""
    carried_by: ClassVar[Counted] = "requests"
    """What a voter must have a share of to have a say in it."""

    def __init__(
        self,
        settings: JudgeSettings,
        alpha: float,
        error_limits: tuple[float, ...],
        statistic: int,
    ) -> None:
        self.settings = settings
        self.alpha = alpha
        self.error_limits = error_limits
        self.statistic = statistic

    @classmethod
    def shares_alpha(cls, settings: JudgeSettings) -> bool:  # noqa: ARG003
        """Whether it takes part of the strategy's alpha; hard stops and advice do not."""
        return True

    @abstractmethod
    def advance(self, state: JudgeState, look: Look) -> JudgeState:
        """The state with this criterion's statistic after a look."""

    @abstractmethod
    def result(self, state: JudgeState, error_limit: float | None) -> CriterionResult | None:
        """Result of this look; None where it does not apply at a step of this error limit."""


class EProcessCriterion(Criterion):
    """A criterion whose statistic is one e-process against "the candidate keeps it"."""

    alternatives: ClassVar[Sequence[float]] = eprocess.ODDS_ALTERNATIVES
    whole: ClassVar[Whole] = "requests"

    @cached_property
    def threshold(self) -> float:
        """Log of the evidence that decides: reached with probability at most alpha (Ville)."""
        return log(1 / self.alpha)

    @cached_property
    def stakes(self) -> eprocess.LogWealth:
        """The log-wealths before any data."""
        return eprocess.none_yet(self.alternatives)

    @property
    def advisory(self) -> bool:
        """Whether a breach is told and decides nothing."""
        return False

    @abstractmethod
    def addends(self, state: JudgeState, look: Look) -> eprocess.LogWealth | None:
        """What a look adds to the log-wealths; None where it brings nothing to bet on."""

    @override
    def advance(self, state: JudgeState, look: Look) -> JudgeState:
        return bet(state, self.name, self.stakes, self.addends(state, look))

    def says(
        self,
        state: JudgeState,
        *,
        values: tuple[float | None, float | None],
        rule: str,
        against_limit: bool = False,
    ) -> CriterionResult:
        """The result that the e-process gives, with both arms' figures."""
        candidate, stable = state.totals.candidate, state.totals.stable
        log_e = log_evidence(state, self.name)
        counts = (
            getattr(candidate, self.whole),
            0.0 if against_limit else getattr(stable, self.whole),
        )
        return CriterionResult.of(
            self.name,
            breached=log_e >= self.threshold,
            advisory=self.advisory,
            values=values,
            counts=counts,
            log_e=log_e,
            threshold=self.threshold,
            rule=rule,
            # The limit that stands in for stable's figure is in the rule.
            shown=lambda: self.shown((values[0], None if against_limit else values[1]), counts),
        )

    def shown(
        self, values: tuple[float | None, float | None], counts: tuple[float, float]
    ) -> list[str]:
        """Both arms' figures, in words."""
        if self.whole == "scores":
            return means_shown(values, counts, "scores")
        return shares_shown(values, counts, self.whole.replace("_", " "))


def log_evidence(state: JudgeState, key: str) -> float:
    """Log of the evidence that an e-process has."""
    wealth = state.wealth.get(key)
    return eprocess.mixture(wealth) if wealth else 0.0


def bet(
    state: JudgeState,
    key: str,
    stakes: eprocess.LogWealth,
    addends: eprocess.LogWealth | None,
) -> JudgeState:
    """The state with the addends of one e-process, which begins with the stakes.

    It is the same state: one that `opened` gave owns its log-wealths, and a copy for each of twenty
    criteria would take longer than the bets.
    """
    wealth = state.wealth.get(key) or stakes
    state.wealth[key] = eprocess.added(wealth, addends) if addends and any(addends) else wealth
    return state


def rate_stakes(statistic: int) -> eprocess.LogWealth:
    """What the bets on a ratio of rates begin with, by the version of the rule."""
    evenly = eprocess.none_yet(eprocess.RATE_ALTERNATIVES)
    if statistic > LAST_WITH_EARLIER_STAKES:
        return eprocess.RATE_STAKES
    return eprocess.EARLIER_RATE_STAKES if statistic > 1 else evenly


def shares(arms: Arms, whole: Whole, part: str) -> tuple[float | None, float | None]:
    """What share `part` is of `whole`, on the candidate and on stable."""
    candidate, stable = arms.candidate, arms.stable
    return (
        ratio(getattr(candidate, part), getattr(candidate, whole)),
        ratio(getattr(stable, part), getattr(stable, whole)),
    )
