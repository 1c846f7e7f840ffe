"""Circuit breaker of the candidate: this replica stops sending to one that fails time after time.

It acts in the request that fails, seconds before the controller has seen a scrape. It takes no
candidate back: the controller, which reads it as a metric, decides for all replicas.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from services.router.call import FAILED
from shared.clock import Clock
from shared.contracts.events.interactions import Arm, Outcome

log = structlog.get_logger(__name__)

CANDIDATE = Arm.candidate.value
COOLDOWN_S = 30.0
"""How long an open breaker waits before it lets one request try."""
MAX_ROLLOUTS = 64
"""Rollouts remembered; a model has one at a time."""


@dataclass(slots=True)
class FailureCount:
    """The candidate's failures in a row, and when the next request may try (monotonic seconds)."""

    in_row: int = 0
    opened: bool = False
    tries_at: float = 0.0


class CandidateBreaker:
    """Opens after `failures` failed candidate attempts in a row, by rollout; one success closes it."""

    def __init__(self, clock: Clock, *, failures: int) -> None:
        self._clock = clock
        self._failures = failures
        self._counts: dict[str, FailureCount] = {}

    def note(self, rollout: str, arm: str, outcome: Outcome) -> None:
        """Take note of how an attempt ended; refusals of a client's request say nothing."""
        if arm != CANDIDATE or outcome in (Outcome.client_error, Outcome.cancelled):
            return
        count = self._counts.get(rollout)
        if outcome not in FAILED:
            if count is not None:
                if count.opened:
                    log.info("breaker.closed", rollout=rollout)
                del self._counts[rollout]
            return
        if count is None:
            while len(self._counts) >= MAX_ROLLOUTS:
                del self._counts[next(iter(self._counts))]
            count = self._counts[rollout] = FailureCount()
        count.in_row += 1
        if count.in_row >= self._failures and not count.opened:
            count.opened = True
            count.tries_at = self._clock.monotonic() + COOLDOWN_S
            log.warning("breaker.opened", rollout=rollout, failures=count.in_row)

    def refuses(self, rollout: str) -> bool:
        """Whether a candidate request goes to stable instead; now and then one may try."""
        count = self._counts.get(rollout)
        if count is None or not count.opened:
            return False
        now = self._clock.monotonic()
        if now < count.tries_at:
            return True
        count.tries_at = now + COOLDOWN_S
        return False

    def is_open(self, rollout: str) -> bool:
        """Whether it is open, for the metric that the controller reads."""
        count = self._counts.get(rollout)
        return count is not None and count.opened
