"""When to refuse at once: the log is known to be away, or too much is waiting already."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """`probing` lets one group through to find out whether the log is back."""

    closed = "closed"
    open = "open"
    probing = "probing"


@dataclass(frozen=True, slots=True)
class Admission:
    """A group of events that may wait for the log. Hand it back exactly once."""

    events: int
    probe: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a group may not wait, and when to come back."""

    busy: bool
    retry_after_s: int


class CircuitBreaker:
    """Counts what waits for the log and remembers whether the log answers.

    The first failure opens it for `open_s` seconds; then one group at a time may try, and each
    failed try doubles the pause up to `open_max_s`. Times are monotonic seconds, handed in.
    """

    def __init__(self, *, max_waiting: int, open_s: float = 0.5, open_max_s: float = 4.0) -> None:
        self._max_waiting = max_waiting
        self._first_s = open_s
        self._max_s = open_max_s
        self._pause_s = open_s
        self._open_until: float | None = None
        self._probing = False
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Events that wait for the log now."""
        return self._waiting

    def state(self, now: float) -> State:
        """What an event that comes now meets."""
        if self._open_until is None:
            return State.closed
        if self._probing or now < self._open_until:
            return State.open
        return State.probing

    def admit(self, events: int, now: float) -> Admission | Refusal:
        """Let a group wait, or say why not. An empty service lets any one group in."""
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
        self._pause_s = self._first_s

    def failed(self, admission: Admission, now: float) -> None:
        """The log did not acknowledge the group in time."""
        self._leave(admission)
        if admission.probe:
            self._pause_s = min(self._pause_s * 2, self._max_s)
            self._open_until = now + self._pause_s
        elif self._open_until is None:
            self._open_until = now + self._pause_s

    def gave_up(self, admission: Admission) -> None:
        """The one who waited went away, which says nothing about the log."""
        self._leave(admission)

    def _leave(self, admission: Admission) -> None:
        self._waiting -= admission.events
        if admission.probe:
            self._probing = False
