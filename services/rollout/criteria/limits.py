"""Absolute limits: a share of the candidate's requests, unless stable may break it too. Pure."""

# pyright: strict
from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from math import log
from typing import ClassVar, Literal

from typing_extensions import override

from services.rollout import eprocess
from services.rollout.counts import JudgeState
from services.rollout.criteria.criterion import Criterion, Look, bet, log_evidence, shares
from services.rollout.verdict import CriterionResult, shares_shown


class ShareLimit(Criterion):
    """A share of the candidate's requests at most an absolute limit, unless stable breaks it too."""

    by_voter = True
    part: ClassVar[Literal["failures", "slow", "crashes"]]
    words: ClassVar[str]
    relative: ClassVar[str] = ""
    """The criterion that decides where stable may break the limit too; empty: the rollout holds."""

    @cached_property
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
        for key, limit in self.limits.items():
            hits = min(getattr(candidate, self.part), candidate.requests)
            addends = eprocess.above_limit(limit, candidate.requests, hits)
            state = bet(state, key, eprocess.none_yet(eprocess.ODDS_ALTERNATIVES), addends)
        return state

    @override
    def result(self, state: JudgeState, error_limit: float | None) -> CriterionResult | None:
        """Beyond the limit and worse than stable is a breach.

        Both are bounds, not point estimates: noise on stable's few requests neither switches the
        limit off nor takes an equal candidate back. Beyond the limit with stable beyond it too, or
        not told apart from stable, is left to the relative criterion where there is one, else a
        hold.
        """
        present = self.limit(error_limit)
        if present is None:
            return None
        key, limit = present
        log_e = log_evidence(state, key)
        # The limits of one criterion share its alpha.
        threshold = log(max(1, len(self.limits)) / self.alpha)
        beyond = log_e >= threshold
        shared = self._shared(state, limit) if beyond else ""
        values = shares(state.totals, "requests", self.part)
        counts = (state.totals.candidate.requests, state.totals.stable.requests)
        left = bool(shared and self.relative and self.statistic > 2)
        return CriterionResult.of(
            self.name,
            breached=beyond and not shared,
            held=bool(shared) and not left,
            values=values,
            counts=counts,
            log_e=log_e,
            threshold=threshold,
            shown=lambda: shares_shown(values, counts, "requests"),
            rule=f"{self.words} above {limit:.2%}{shared}",
            kept=f"left to {self.relative}, {self.words} above {limit:.2%}{shared}" if left else "",
        )

    def _shared(self, state: JudgeState, limit: float) -> str:
        """Why stable may be beyond the limit as much as the candidate is; empty where it is not."""
        candidate, stable = state.totals.candidate, state.totals.stable
        if not stable.requests:
            return ""
        hits = min(getattr(stable, self.part), stable.requests)
        if eprocess.is_above(limit, stable.requests, hits, self.alpha):
            return " on both arms: see to the engine"
        worst = eprocess.upper_bound(stable.requests, hits, self.alpha / 2)
        own = min(getattr(candidate, self.part), candidate.requests)
        if not eprocess.is_above(worst, candidate.requests, own, self.alpha / 2):
            return ", but stable's may be as high"
        return ""


class SlowShare(ShareLimit):
    """Share of answers later than the latency limit at most `slowShare`."""

    name = part = "slow"
    words = "slow share"
    relative = "slow_ratio"

    @cached_property
    @override
    def limits(self) -> dict[str, float]:
        return {self.name: self.settings.slow_share}

    @override
    def limit(self, error_limit: float | None) -> tuple[str, float]:
        return self.name, self.settings.slow_share


class CrashShare(ShareLimit):
    """Share of lost engine connections at most `crashShare`."""

    name = part = "crashes"
    words = "crash share"

    @cached_property
    @override
    def limits(self) -> dict[str, float]:
        return {self.name: self.settings.crash_share}

    @override
    def limit(self, error_limit: float | None) -> tuple[str, float]:
        return self.name, self.settings.crash_share


class ErrorLimit(ShareLimit):
    """Error rate at most the `errorLimit` of the present step."""

    name = "error_limit"
    part = "failures"
    words = "error rate"

    @cached_property
    @override
    def limits(self) -> dict[str, float]:
        return {f"{self.name}:{limit:g}": limit for limit in self.error_limits}

    @override
    def limit(self, error_limit: float | None) -> tuple[str, float] | None:
        return None if error_limit is None else (f"{self.name}:{error_limit:g}", error_limit)
