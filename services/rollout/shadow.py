"""Shadow step: what the candidate's unseen answers were, beside those shown; when it may end. Pure."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterable
from math import exp, log
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from services.rollout import eprocess
from services.rollout.strategy import ShadowOf
from shared.contracts.events.generations import GenerationFinished, ShadowComparison
from shared.kafka.log import Record

LEAST_RATIO = 0.01
"""Length ratios below count as this one, so that an empty answer has a logarithm."""

ShadowResult = tuple[Record, GenerationFinished]
"""A shadow request's result, and where it stands in the log."""


class ShadowTally(BaseModel):
    """Sums over the answers of a shadow step. Each decision carries it whole.

    `read_to` says which results are in it, so that a successor counts each once. `failed` are the
    candidate's; `expired` were not made in time and the engine refuses `unsuited` ones whatever the
    version: they say nothing about the candidate.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)
    since: AwareDatetime
    read_to: dict[str, int] = Field(default_factory=dict, description="offset by partition")
    answered: int = 0
    failed: int = 0
    expired: int = 0
    unsuited: int = 0
    log_length_ratio: float = 0.0
    similarity: float = 0.0
    refused: int = 0
    shown_refused: int = 0
    tools_differ: int = 0
    latency_ms: float = 0.0
    shown_latency_ms: float = 0.0

    @property
    def asked(self) -> int:
        """Requests that have a result."""
        return self.answered + self.failed + self.expired + self.unsuited

    @property
    def coverage(self) -> float:
        """Share of the requests with a result whose answers were compared; 0 without any."""
        return self.answered / self.asked if self.asked else 0.0

    def lacks(self, record: Record) -> bool:
        """Whether a result is not in the tally yet."""
        return record.offset > self.read_to.get(str(record.partition), -1)

    def counting(self, results: Iterable[ShadowResult], *, judged: bool = True) -> ShadowTally:
        """The tally with results that it lacks; those not to be `judged` are only passed over."""
        tally = self
        for record, result in results:
            if tally.lacks(record):
                read_to = {**tally.read_to, str(record.partition): record.offset}
                sums = tally.plus(result) if judged else {}
                tally = tally.model_copy(update={"read_to": read_to, **sums})
        return tally

    def plus(self, result: GenerationFinished) -> dict[str, float]:
        """The sums that a result changes."""
        if result.outcome == "expired":
            return {"expired": self.expired + 1}
        if result.unsuited:
            return {"unsuited": self.unsuited + 1}
        if result.outcome == "failed" or result.comparison is None:
            return {"failed": self.failed + 1}
        return self._compared(result.comparison)

    def _compared(self, seen: ShadowComparison) -> dict[str, float]:
        return {
            "answered": self.answered + 1,
            "log_length_ratio": self.log_length_ratio + log(max(seen.length_ratio, LEAST_RATIO)),
            "similarity": self.similarity + seen.similarity,
            "refused": self.refused + seen.refused,
            "shown_refused": self.shown_refused + seen.shown_refused,
            "tools_differ": self.tools_differ + (not seen.tools_equal),
            "latency_ms": self.latency_ms + seen.latency_ms,
            "shown_latency_ms": self.shown_latency_ms + seen.shown_latency_ms,
        }

    def differences(self) -> dict[str, float]:
        """Figures of the compared answers; empty without any.

        The length ratio is a geometric mean; the latencies' ratio is that of their means. Shadow
        answers wait for live requests before they begin, not once they are being made.
        """
        n = self.answered
        if not n:
            return {}
        return {
            "length_ratio": exp(self.log_length_ratio / n),
            "similarity": self.similarity / n,
            "refused": self.refused / n,
            "shown_refused": self.shown_refused / n,
            "tools_differ": self.tools_differ / n,
            "latency_ratio": self.latency_ms / max(self.shown_latency_ms, 1.0),
        }

    def broken(self, step: ShadowOf, alpha: float) -> str:
        """Why the candidate is taken back before it has a user; empty where it is not.

        The share of failures is beyond the limit by a bound that holds at every look.
        """
        made = self.answered + self.failed
        if eprocess.lower_bound(made, self.failed, alpha) <= step.error_limit:
            return ""
        return f"{self.failed} of {made} shadow answers failed, the limit is {step.error_limit:.2%}"

    def outcomes(self) -> dict[str, int]:
        """Results by outcome."""
        return {
            "answered": self.answered,
            "failed": self.failed,
            "expired": self.expired,
            "unsuited": self.unsuited,
        }

    def to_dict(self) -> dict[str, Any]:
        """For the API."""
        figures = {"coverage": self.coverage, "differences": self.differences()}
        return {**self.outcomes(), **figures}


def waits_for(tally: ShadowTally, step: ShadowOf, elapsed_s: float) -> str:
    """What keeps a shadow step from ending; empty where nothing does."""
    if tally.answered < step.minimum:
        return f"{tally.answered} of {step.minimum} shadow answers are in"
    if elapsed_s < step.duration:
        return f"{step.duration - elapsed_s:.0f} s left"
    return ""
