"""Results of the criteria at one look, and the verdict that follows from them."""

# pyright: strict
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from shared.contracts.events.rollouts import AnalysisOutcome

ARMS = ("candidate", "stable")


class CriterionState(StrEnum):
    """State of one criterion."""

    ok = "ok"
    breached = "breached"
    advised = "advised"
    held = "held"


@dataclass(frozen=True, slots=True)
class CriterionResult:
    """One criterion at one look."""

    criterion: str
    state: CriterionState
    candidate: float | None
    stable: float | None
    candidate_n: float
    stable_n: float
    log_e: float
    threshold: float
    said: str
    shown: Callable[[], Sequence[str]] = tuple
    note: str = ""

    @property
    def text(self) -> str:
        """The state in words, with the figures; put together where somebody reads it."""
        shown = ", ".join(self.shown())
        figures = f" ({shown})" if shown else ""
        return f"{self.criterion}: {self.said}{figures}{self.note}"

    @classmethod
    def of(
        cls,
        criterion: str,
        *,
        breached: bool,
        values: tuple[float | None, float | None],
        counts: tuple[float, float],
        log_e: float,
        threshold: float,
        rule: str,
        shown: Callable[[], Sequence[str]],
        held: bool = False,
        kept: str = "",
        advisory: bool = False,
    ) -> CriterionResult:
        """Result of a criterion, with its text.

        Args:
            criterion: Its name.
            breached: Whether the candidate breaks it.
            held: Whether it cannot tell, and nobody should go on.
            kept: What holds where it is neither, in words; empty: it is kept.
            advisory: Whether a breach is told and decides nothing.
            values: The candidate's figure and stable's.
            counts: What each of them is a share or mean of.
            log_e: Log of the evidence.
            threshold: Where the evidence is enough.
            rule: What would be wrong, in words.
            shown: The figures, in words.

        """
        state = CriterionState.ok
        if breached or held:
            state = CriterionState.breached if breached else CriterionState.held
        if breached and advisory:
            state = CriterionState.advised
        candidate, stable = values
        return cls(
            criterion=criterion,
            state=state,
            candidate=candidate,
            stable=stable,
            candidate_n=counts[0],
            stable_n=counts[1],
            log_e=log_e,
            threshold=threshold,
            said=rule if state is not CriterionState.ok else kept or "kept",
            shown=shown,
        )

    def held(self, why: str) -> CriterionResult:
        """The same as a hold, with the reason."""
        return replace(self, state=CriterionState.held, note=f"{self.note}; {why}")

    def to_dict(self) -> dict[str, Any]:
        """For evidence and the API."""
        return {
            "criterion": self.criterion,
            "state": self.state.value,
            "candidate": None if self.candidate is None else round(self.candidate, 6),
            "stable": None if self.stable is None else round(self.stable, 6),
            "candidate_n": self.candidate_n,
            "stable_n": self.stable_n,
            "log_e": round(self.log_e, 4),
            "threshold": round(self.threshold, 4),
            "text": self.text,
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict of the judge at one look: Failed, Inconclusive or Successful."""

    outcome: AnalysisOutcome
    reason: str
    results: tuple[CriterionResult, ...]


def ratio(part: float, whole: float) -> float | None:
    """A share; None where the total is 0."""
    return part / whole if whole > 0 else None


def shares_shown(
    values: tuple[float | None, float | None], counts: tuple[float, float], of: str
) -> list[str]:
    """Both arms' shares of what is counted, in words; an arm without any is left out."""
    return [
        f"{arm} {value:.2%} of {count:g} {of}"
        for arm, value, count in zip(ARMS, values, counts, strict=True)
        if value is not None
    ]


def means_shown(
    values: tuple[float | None, float | None],
    counts: tuple[float, float],
    of: str,
    *,
    digits: int = 3,
    unit: str = "",
) -> list[str]:
    """Both arms' means of what is counted, in words; an arm without any is left out."""
    return [
        f"{arm} {value:.{digits}f}{unit} over {count:g} {of}"
        for arm, value, count in zip(ARMS, values, counts, strict=True)
        if value is not None
    ]
