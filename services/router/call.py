"""One request on its way: what was tried, what came of it, and how long it took."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from services.router.filter_rules import FilterFindings
from services.router.latency_limits import LatencyLimit
from services.router.request import ChatRequest
from services.router.request_part import RequestPart
from services.router.response import EngineResponse
from services.router.state import HOLDOUT, RouteChoice
from shared.contracts.events.interactions import AppliedSettings, Arm, Outcome
from shared.kafka.envelope import Headers
from shared.observability.tracing import SPAN_ID

FAILED = frozenset((Outcome.server_error, Outcome.timeout, Outcome.crash))
"""Outcomes that are the version's or the engine's fault."""


def recorded_arm(arm: str) -> str:
    """The arm as an event has it: its closed set has none for held-out users."""
    return "" if arm == HOLDOUT else arm


@dataclass(slots=True)
class EngineAttempt:
    """One try at an engine. Times are `perf_counter` seconds; 0 means that no token came."""

    version: str
    arm: str
    started: float
    outcome: Outcome = Outcome.ok
    status: int = 0
    error: str = ""
    duration_s: float = 0.0
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    counted: bool = False
    counted_arm: str = ""
    """Arm in the metrics: `capped` where the attempt does not count in the judgement."""
    applied: AppliedSettings | None = None
    """What the version's settings made of the request; None without any."""

    @property
    def engine_model(self) -> str:
        """The name by which the engine was asked: the version, or what its settings serve."""
        return self.version if self.applied is None else self.applied.engine_model

    @property
    def waited_s(self) -> float:
        """How long the client waited: to the first token, else to the attempt's end."""
        if self.first_token_at and self.outcome is not Outcome.timeout:
            return self.first_token_at - self.started
        return self.duration_s

    def clear(self) -> None:
        """Forget what came of one engine: another is asked, in the same attempt."""
        self.outcome, self.status, self.error = Outcome.ok, 0, ""
        self.first_token_at = self.last_token_at = 0.0

    def row(self, error: str) -> dict[str, Any]:
        """The attempt as it stands in the event."""
        return {
            "version": self.version,
            "arm": recorded_arm(self.arm),
            "outcome": self.outcome.value,
            "status": self.status,
            "duration_ms": round(self.duration_s * 1000, 3),
            "error": error,
        }


@dataclass(slots=True)
class Call:
    """A request, where it was sent, and its attempts. `started` is in `perf_counter` seconds."""

    request: ChatRequest
    choice: RouteChoice
    tenant: str
    started: float
    started_at: datetime
    traceparent: str
    """The request's own span."""
    key_id: str = ""
    """Of the API key that asked."""
    given_traceparent: bytes | None = None
    """The client's header."""
    attempts: list[EngineAttempt] = field(default_factory=list)
    answer: EngineResponse = field(default_factory=EngineResponse)
    engine_s: float = 0.0
    overhead_s: float = 0.0
    max_gap_s: float | None = None
    segment: str = ""
    slow_after_s: float = LatencyLimit().answer_s
    """The latency limit: of the whole answer, of a stream's first token."""
    shows_arm: bool = False
    """Whether the client may know version and arm."""
    recorded: bool = False
    counted: bool = False
    """Whether what the answer did is counted."""
    part: RequestPart | None = None
    """The event's first half, where it was built before the answer came."""
    event_headers: Headers = ()
    """Of the event's record, where they were made before, too."""
    filtered: FilterFindings | None = None
    """What the output filter found; None where it found nothing or did not look."""

    def shown(self, version: str) -> str:
        """The model's name in the client's answer: the version, or the alias that hides it."""
        return version if self.shows_arm else self.choice.model

    def plan(self) -> Iterator[tuple[str, str]]:
        """Version and arm of each attempt that may follow when the one before failed."""
        yield self.choice.version, self.choice.arm
        if self.choice.fallback:
            yield self.choice.fallback, Arm.fallback.value

    def attempt_traceparent(self, number: int) -> str:
        """The span that an engine's own are to hang under: the request's, or that of a retry."""
        return self.attempt_span(number) if number else self.traceparent

    def attempt_span(self, number: int) -> str:
        """The span of an attempt, where a request has several."""
        own = int(self.traceparent[SPAN_ID], 16)
        return f"{self.traceparent[:36]}{own ^ number + 1:016x}{self.traceparent[52:]}"

    def note_gap(self, seconds: float) -> None:
        """Keep the largest gap between two tokens of the stream."""
        if self.max_gap_s is None or seconds > self.max_gap_s:
            self.max_gap_s = seconds

    @property
    def last(self) -> EngineAttempt:
        """The attempt that answered, or the last one that tried."""
        return self.attempts[-1]
