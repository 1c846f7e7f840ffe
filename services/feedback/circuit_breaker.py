"""Circuit breaker in front of the event log: a write may wait within a bound, or fails fast.

Pure: the clock is handed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from shared.backoff import Backoff


class State(StrEnum):
    """State of the breaker; `probing` (half-open) lets one group through to test the log."""

    closed = "closed"
    open = "open"
    probing = "probing"


@dataclass(frozen=True, slots=True)
class Admission:
    """Permission for a group of events to wait for the log; hand it back exactly once."""

    events: int
    probe: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """Refusal of a group: queue full (`busy`) or breaker open, and when to retry."""

    busy: bool
    retry_after_s: int


class CircuitBreaker:
    """Circuit breaker with a bound on waiting events.

    The first failure opens it for `open_s` seconds; then one group at a time may try, and each
    failed try doubles the pause up to `open_max_s`. Times are monotonic seconds, handed in.
    """

    def __init__(self, *, max_waiting: int, open_s: float = 0.5, open_max_s: float = 4.0) -> None:
        self._max_waiting = max_waiting
        self._pauses = Backoff(open_s, open_max_s)
        self._open_until: float | None = None
        self._probing = False
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Events that wait for the log now."""
        return self._waiting

    def state(self, now: float) -> State:
        """The breaker's state for a write that arrives at `now`."""
        if self._open_until is None:
            return State.closed
        if self._probing or now < self._open_until:
            return State.open
        return State.probing

    def admit(self, events: int, now: float) -> Admission | Refusal:
        """Admit or refuse a group of events. With nothing waiting, any size is admitted."""
        state = self.state(now)
        if state is State.open:
            assert self._open_until is not None
            return Refusal(False, max(1, math.ceil(self._open_until - now)))
        if self._waiting and self._waiting + events > self._max_waiting:
            return Refusal(True, 1)
        probe = state is State.probing
        self._probing = self._probing or probe
        self._waiting += events
        return Admission(events, probe)

    def succeeded(self, admission: Admission) -> None:
        """The log acknowledged the group."""
        self._leave(admission)
        self._open_until = None
        self._pauses.reset()

    def failed(self, admission: Admission, now: float) -> None:
        """The log did not acknowledge the group in time."""
        self._leave(admission)
        if admission.probe or self._open_until is None:
            self._open_until = now + self._pauses.next_s()

    def gave_up(self, admission: Admission) -> None:
        """The caller was cancelled; the breaker learns nothing about the log."""
        self._leave(admission)

    def _leave(self, admission: Admission) -> None:
        self._waiting -= admission.events
        if admission.probe:
            self._probing = False
