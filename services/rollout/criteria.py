"""Criteria of the judge: each with its statistic, threshold and text in one place. Pure.

A criterion keeps its own part of `JudgeState`, for most of them an e-process (see `eprocess`), and
says at any look whether the candidate keeps it. To add one, write its class here and name it in
CRITERIA: the verdict, the decisions' evidence, the API and the metrics take it from there. A figure
that no arm has yet is a field of `ArmCounts` and a row of `evidence.FIGURES`.
"""

# pyright: strict
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import ClassVar, Literal

from typing_extensions import override

from services.rollout import eprocess
from services.rollout.counts import ArmCounts, Baseline, FailureRun, JudgeState, KeyTest, Slice
from services.rollout.strategy import JudgeSettings
from services.rollout.verdict import CriterionResult, means_shown, ratio, shares_shown
from shared.contracts.events.base import WEIGHT_SCALE

RATE_BLOCK = 1
"""Requests of each arm that make a block for the error criterion: waiting costs seconds."""
SCORE_BLOCK = 3
"""Scores of each arm that make a block: single ones would waste what the other arm has."""
MAX_INTERVALS = 16
"""Weights that the sample-ratio test shares its alpha between."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is new at one look.

    `requests` and `scores` are the blocks that it completes, or None; `stable_score` is the stable
    mean from before the block of scores, as a bet may not know what it bets on. `parent` is what
    stable did in the last step before this slice.
    """

    piece: Slice
    parent: ArmCounts
    requests: Slice | None
    scores: Slice | None
    stable_score: float
    begins_bake: bool


def opened(state: JudgeState, piece: Slice) -> tuple[JudgeState, Look]:
    """The state with a slice counted in, and the look at it that the criteria bet on."""
    requests, scores = state.rates + piece, state.scores + piece
    # Whether a block ends depends on how many came and on no outcome: else it would bias the bet.
    with_requests = _least(requests, "requests") >= RATE_BLOCK
    whole = all(
        0 <= arm.score_sum <= arm.scores + 1e-9 for arm in (scores.candidate, scores.stable)
    )
    with_scores = whole and _least(scores, "scores") >= SCORE_BLOCK
    before, waiting = state.totals.stable, state.scores.stable
    look = Look(
        piece=piece,
        parent=state.stage_stable,
        requests=requests if with_requests else None,
        scores=scores if with_scores else None,
        stable_score=(before.score_sum - waiting.score_sum + 1)
        / (before.scores - waiting.scores + 2),
        begins_bake=piece.bake and state.baseline is None,
    )
    begins_stage = piece.weight not in (0, state.stage_weight)
    after = state.but(
        looks=state.looks + 1,
        totals=state.totals + piece,
        stage_weight=piece.weight or state.stage_weight,
        stage_stable=piece.stable if begins_stage else state.stage_stable + piece.stable,
        rates=Slice() if with_requests else requests,
        scores=Slice() if with_scores else scores,
    )
    return after, look


class Criterion(ABC):
    """One condition that a candidate must keep.

    `alpha` is the probability with which this criterion may ever condemn a candidate that keeps it.
    """

    name: ClassVar[str]
    shares_alpha: ClassVar[bool] = True

    def __init__(
        self, settings: JudgeSettings, alpha: float, error_limits: tuple[float, ...]
    ) -> None:
        self.settings = settings
        self.alpha = alpha
        self.error_limits = error_limits

    @abstractmethod
    def advance(self, state: JudgeState, look: Look) -> JudgeState:
        """The state with this criterion's statistic after a look."""

    @abstractmethod
    def result(self, state: JudgeState, error_limit: float | None) -> CriterionResult | None:
        """Result of this look; None where it does not apply at a step of this error limit."""


class _EProcess(Criterion):
    """A criterion whose statistic is one e-process against "the candidate keeps it"."""

    alternatives: ClassVar[Sequence[float]] = eprocess.ODDS_ALTERNATIVES

    @property
    def threshold(self) -> float:
        """Log of the evidence that decides: reached with probability at most alpha (Ville)."""
        return log(1 / self.alpha)

    @abstractmethod
    def addends(self, state: JudgeState, look: Look) -> eprocess.LogWealth | None:
        """What a look adds to the log-wealths; None where it brings nothing to bet on."""

    @override
    def advance(self, state: JudgeState, look: Look) -> JudgeState:
        return _bet(state, self.name, self.alternatives, self.addends(state, look))

    def _says(
        self,
        state: JudgeState,
        *,
        of: Literal["requests", "scores"],
        values: tuple[float | None, float | None],
        rule: str,
        against_limit: bool = False,
    ) -> CriterionResult:
        candidate, stable = state.totals.candidate, state.totals.stable
        log_e = log_evidence(state, self.name)
        counts = (getattr(candidate, of), 0.0 if against_limit else getattr(stable, of))
        in_words = shares_shown if of == "requests" else means_shown
        return CriterionResult.of(
            self.name,
            breached=log_e >= self.threshold,
            values=values,
            counts=counts,
            log_e=log_e,
            threshold=self.threshold,
            rule=rule,
            # The limit that stands in for stable's figure is in the rule.
            shown=in_words((values[0], None if against_limit else values[1]), counts),
        )


class _RateRatio(_EProcess):
    """A share of the candidate's requests at most `margin` times stable's."""

    alternatives = eprocess.RATE_ALTERNATIVES
    part: ClassVar[Literal["failures", "slow"]]
    words: ClassVar[str]

    @property
    @abstractmethod
    def margin(self) -> float:
        """How many times stable's share is still kept."""

    @override
    def addends(self, state: JudgeState, look: Look) -> eprocess.LogWealth | None:
        """The conditional test: given both arms' requests of a block, whose hit is the next."""
        if look.requests is None:
            return None
        candidate, stable = look.requests.candidate, look.requests.stable
        return eprocess.rate_ratio(
            self.margin,
            (candidate.requests, getattr(candidate, self.part)),
            (stable.requests, getattr(stable, self.part)),
        )

    @override
    def result(self, state: JudgeState, error_limit: float | None) -> CriterionResult:
        return self._says(
            state,
            of="requests",
            values=_shares(state, self.part),
            rule=f"more than {self.margin:g} times stable's {self.words}",
        )


class ErrorRatio(_RateRatio):
    """Error rate at most `errorMargin` times stable's."""

    name = "errors"
    part = "failures"
    words = "error rate"

    @property
    @override
    def margin(self) -> float:
        return self.settings.error_margin


class SlowRatio(_RateRatio):
    """Slow share at most `slowMargin` times stable's: it decides where stable breaks the limit too."""

    name = "slow_ratio"
    part = "slow"
    words = "slow share"

    @property
    @override
    def margin(self) -> float:
        return self.settings.slow_margin


class _ScoreRatio(_EProcess):
    """Mean score at least `margin` times stable's."""

    alternatives = eprocess.MEAN_ALTERNATIVES

    @property
    @abstractmethod
    def margin(self) -> float:
        """What part of stable's mean is enough."""

    @override
    def addends(self, state: JudgeState, look: Look) -> eprocess.LogWealth | None:
        """A likelihood ratio of both arms' means in a block of scores."""
        if look.scores is None:
            return None
        candidate, stable = look.scores.candidate, look.scores.stable
        return eprocess.mean_ratio(
            self.margin,
            look.stable_score,
            (candidate.scores, min(candidate.score_sum, candidate.scores)),
            (stable.scores, min(stable.score_sum, stable.scores)),
        )

    @override
    def result(self, state: JudgeState, error_limit: float | None) -> CriterionResult | None:
        candidate, stable = state.totals.candidate, state.totals.stable
        return self._says(
            state,
            of="scores",
            values=(
                ratio(candidate.score_sum, candidate.scores),
                ratio(stable.score_sum, stable.scores),
            ),
            rule=f"satisfaction below {self.margin:g} times stable's",
        )


class Satisfaction(_ScoreRatio):
    """Mean score at least `satisfactionMargin` times stable's."""

    name = "satisfaction"

    @property
    @override
    def margin(self) -> float:
        return self.settings.satisfaction_margin


class BelowBaseline(_ScoreRatio):
    """Mean score at least stable's own, where the strategy asks for that."""

    name = "below_baseline"

    @property
    @override
    def margin(self) -> float:
        return 1.0

    @override
    def result(self, state: JudgeState, error_limit: float | None) -> CriterionResult | None:
        return super().result(state, error_limit) if self.settings.below_baseline else None


class _ShareLimit(Criterion):
    """A share of the candidate's requests at most an absolute limit, unless stable breaks it too."""

    part: ClassVar[Literal["failures", "slow", "crashes"]]
    words: ClassVar[str]

    @abstractmethod
    def limits(self) -> dict[str, float]:
        """Each limit that some step has, by the name of its e-process."""

    @abstractmethod
    def limit(self, error_limit: float | None) -> tuple[str, float] | None:
        """The one that holds at a step, with that name."""

    @override
    def advance(self, state: JudgeState, look: Look) -> JudgeState:
        """Bet on the candidate's share alone, once for each limit."""
        candidate = look.piece.candidate
        for key, limit in self.limits().items():
            hits = min(getattr(candidate, self.part), candidate.requests)
            addends = eprocess.above_limit(limit, candidate.requests, hits)
            state = _bet(state, key, eprocess.ODDS_ALTERNATIVES, addends)
        return state

    @override
    def result(self, state: JudgeState, error_limit: float | None) -> CriterionResult | None:
        """Beyond the limit and worse than stable is a breach.

        Both are bounds, not point estimates: noise on stable's few requests neither switches the
        limit off nor takes an equal candidate back. Beyond the limit with stable beyond it too, or
        not told apart from stable, is a hold; the relative criteria still decide.
        """
        present = self.limit(error_limit)
        if present is None:
            return None
        key, limit = present
        log_e = log_evidence(state, key)
        # The limits of one criterion share its alpha.
        threshold = log(max(1, len(self.limits())) / self.alpha)
        beyond = log_e >= threshold
        shared = self._shared(state, limit) if beyond else ""
        values = _shares(state, self.part)
        counts = (state.totals.candidate.requests, state.totals.stable.requests)
        return CriterionResult.of(
            self.name,
            breached=beyond and not shared,
            held=bool(shared),
            values=values,
            counts=counts,
            log_e=log_e,
            threshold=threshold,
            shown=shares_shown(values, counts),
            rule=f"{self.words} above {limit:.2%}{shared}",
        )

    def _shared(self, state: JudgeState, limit: float) -> str:
        """Why stable may be beyond the limit as much as the candidate is; empty where it is not."""
        candidate, stable = state.totals.candidate, state.totals.stable
        if not stable.requests:
            return ""
        hits = min(getattr(stable, self.part), stable.requests)
        if eprocess.lower_bound(stable.requests, hits, self.alpha) > limit:
            return " on both arms: see to the engine"
        worst = eprocess.upper_bound(stable.requests, hits, self.alpha / 2)
        own = min(getattr(candidate, self.part), candidate.requests)
        if eprocess.lower_bound(candidate.requests, own, self.alpha / 2) <= worst:
            return ", but stable's may be as high"
        return ""


class SlowShare(_ShareLimit):
    """Share of answers later than 2,000 ms at most `slowShare`."""

    name = part = "slow"
    words = "slow share"

    @override
    def limits(self) -> dict[str, float]:
        return {self.name: self.settings.slow_share}

    @override
    def limit(self, error_limit: float | None) -> tuple[str, float]:
        return self.name, self.settings.slow_share


class CrashShare(_ShareLimit):
    """Share of lost engine connections at most `crashShare`."""

    name = part = "crashes"
    words = "crash share"

    @override
    def limits(self) -> dict[str, float]:
        return {self.name: self.settings.crash_share}

    @override
    def limit(self, error_limit: float | None) -> tuple[str, float]:
        return self.name, self.settings.crash_share


class ErrorLimit(_ShareLimit):
    """Error rate at most the `errorLimit` of the present step."""

    name = "error_limit"
    part = "failures"
    words = "error rate"

    @override
    def limits(self) -> dict[str, float]:
        return {f"{self.name}:{limit:g}": limit for limit in self.error_limits}

    @override
    def limit(self, error_limit: float | None) -> tuple[str, float] | None:
        return None if error_limit is None else (f"{self.name}:{error_limit:g}", error_limit)


class FailureStreak(Criterion):
    """Hard stop: `consecutiveFailures` failures in a row, unless stable fails likewise."""

    name = "consecutive_failures"
    shares_alpha = False

    @override
    def advance(self, state: JudgeState, look: Look) -> JudgeState:
        """Within a slice the order is unknown, so any success ends the streak."""
        candidate, stable = look.piece.candidate, look.piece.stable
        if candidate.requests > candidate.failures:
            return state.but(run=FailureRun())
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
            shown=[f"{run.failures:g} in a row"],
            rule=f"{limit} failures in a row or more"
            + (", and stable fails too: see to the engine" if reached and shared else ""),
        )


class SampleRatio(Criterion):
    """Sample-ratio mismatch: distinct keys split by the weight. Holds, never fails."""

    name = "sample_ratio"
    shares_alpha = False

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
            shown=[f"candidate {test.candidate / seen:.2%} of {seen:g} keys, weight {share:.2%}"]
            if seen
            else [],
            rule="keys are not split as the weight says, so the arms cannot be compared",
        )


class _Bake(_EProcess):
    """At 100 % stable has no users: the limit is its worst allowed figure from before.

    That limit can be wrong too: half of the criterion's alpha is for its bound on stable.
    """

    @property
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
        return state if addends is None else _bet(state, self.name, self.alternatives, addends)


class BakeErrors(_Bake):
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
        return self._says(
            state,
            of="requests",
            values=(_shares(state, "failures")[0], limit),
            rule=f"error rate above {limit:.2%}, from the parent's figures",
            against_limit=True,
        )


class BakeSatisfaction(_Bake):
    """Mean score at least what `satisfactionMargin` allowed, once stable has no users."""

    name = "bake_satisfaction"

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
        return self._says(
            state,
            of="scores",
            values=(ratio(candidate.score_sum, candidate.scores), limit),
            rule=f"satisfaction below {limit:.3f}, from the parent's figures",
            against_limit=True,
        )


CRITERIA: tuple[type[Criterion], ...] = (
    ErrorRatio,
    SlowShare,
    SlowRatio,
    CrashShare,
    Satisfaction,
    FailureStreak,
    SampleRatio,
    ErrorLimit,
    BelowBaseline,
    BakeErrors,
    BakeSatisfaction,
)
"""All criteria, in the order of a verdict's reasons."""


def criteria(settings: JudgeSettings, error_limits: tuple[float, ...]) -> tuple[Criterion, ...]:
    """The criteria of one rollout, which share the strategy's alpha evenly."""
    alpha = settings.alpha / sum(criterion.shares_alpha for criterion in CRITERIA)
    return tuple(criterion(settings, alpha, error_limits) for criterion in CRITERIA)


def log_evidence(state: JudgeState, key: str) -> float:
    """Log of the evidence that an e-process has."""
    wealth = state.wealth.get(key)
    return eprocess.mixture(wealth) if wealth else 0.0


def _bet(
    state: JudgeState,
    key: str,
    alternatives: Sequence[float],
    addends: eprocess.LogWealth | None,
) -> JudgeState:
    before = state.wealth.get(key) or eprocess.none_yet(alternatives)
    after = before if addends is None else eprocess.added(before, addends)
    return state.but(wealth={**state.wealth, key: after})


def _least(block: Slice, part: Literal["requests", "scores"]) -> float:
    return min(getattr(block.candidate, part), getattr(block.stable, part))


def _shares(
    state: JudgeState, part: Literal["failures", "slow", "crashes"]
) -> tuple[float | None, float | None]:
    candidate, stable = state.totals.candidate, state.totals.stable
    return (
        ratio(getattr(candidate, part), candidate.requests),
        ratio(getattr(stable, part), stable.requests),
    )
