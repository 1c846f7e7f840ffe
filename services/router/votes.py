"""Vote limits: which attempts count in a rollout's judgement, so that no single user decides it.

Whether an attempt counts depends on the user's earlier attempts alone, never on its own outcome:
the chance that it fails is what it would be anyway, and the judge's tests stay valid (design
section 7). Counts are of this process; another replica, or a restart, counts anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.router.assignment import KeyKind, key_of
from services.router.call import FAILED, Call, EngineAttempt
from services.router.metrics import SLOW_AFTER_S
from shared.contracts.events.interactions import Arm, Outcome

ATTEMPTS_PER_DAY = 200
BAD_PER_DAY = 2
"""How many attempts of a user count for a rollout in a day (UTC), and how many bad ones: with two
no one user reaches any limit of the judge alone."""
MAX_VOTERS = 100_000
"""Users remembered; while that many are, no further one counts."""
CAPPED = "capped"
"""Arm in the metrics of an attempt of a rollout that does not count."""
JUDGED_ARMS = frozenset((Arm.stable.value, Arm.candidate.value))

Voter = tuple[str, str, KeyKind, str]
"""rollout, tenant, kind of key, key"""


@dataclass(slots=True)
class VotesCast:
    """What a user cast on a day (its ordinal)."""

    day: int
    attempts: int = 0
    bad: int = 0


class VoteLimits:
    """Counts each user's attempts of a day, and says which of them are judged."""

    def __init__(self, *, max_voters: int = MAX_VOTERS) -> None:
        self._max_voters = max_voters
        self._cast: dict[Voter, VotesCast] = {}
        self._cleared_on = 0

    def arm(self, call: Call, attempt: EngineAttempt) -> str:
        """The arm that an attempt which has ended counts for: its own, or `capped`."""
        if not call.choice.rollout or attempt.arm not in JUDGED_ARMS:
            return attempt.arm
        if attempt.outcome is Outcome.client_error:
            return attempt.arm
        request = call.request
        kind, key = key_of(request.user, request.session, request.trace_id)
        if kind is KeyKind.trace:
            return CAPPED
        votes = self._votes((call.choice.rollout, call.tenant, kind, key), call)
        if votes is None or votes.attempts >= ATTEMPTS_PER_DAY or votes.bad >= BAD_PER_DAY:
            return CAPPED
        votes.attempts += 1
        votes.bad += _bad(call, attempt)
        return attempt.arm

    def _votes(self, voter: Voter, call: Call) -> VotesCast | None:
        """The user's votes of the day; None where too many users are remembered."""
        day = call.started_at.toordinal()
        votes = self._cast.get(voter)
        if votes is not None and votes.day == day:
            return votes
        if votes is None and len(self._cast) >= self._max_voters:
            self._clear(day)
            if len(self._cast) >= self._max_voters:
                return None
        votes = self._cast[voter] = VotesCast(day)
        return votes

    def _clear(self, day: int) -> None:
        """Forget the votes of days before, once a day: reading all of them takes milliseconds."""
        if day > self._cleared_on:
            self._cleared_on = day
            self._cast = {key: kept for key, kept in self._cast.items() if kept.day == day}


def _bad(call: Call, attempt: EngineAttempt) -> bool:
    """Whether it failed, was late, or hung between two tokens."""
    return (
        attempt.outcome in FAILED
        or attempt.waited_s > SLOW_AFTER_S
        or (call.max_gap_s or 0.0) > SLOW_AFTER_S
    )
