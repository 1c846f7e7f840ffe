"""Vote limits: which attempts count in a rollout's judgement, so that no one decides it alone.

Whether an attempt counts depends on earlier attempts alone, never on its own outcome: the chance
that it fails is what it would be anyway, and the judge's tests stay valid (design section 7). Bad
attempts, and those of keys and tenants in a minute, are exchanged with the other replicas
(`vote_exchange`); a user's other attempts are this process's.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from services.router.assignment import KeyKind, digest, key_of
from services.router.call import FAILED, Call, EngineAttempt
from services.router.metrics import STALLED_AFTER_S
from shared.contracts.events.interactions import Arm, Outcome

ATTEMPTS_PER_DAY = 200
BAD_PER_DAY = 2
"""How many attempts of a user count for a rollout in a day (UTC), and how many bad ones: with two
no one user reaches any limit of the judge alone."""
MAX_VOTERS = 100_000
"""Users remembered. While that many are, no further one of the API key that brought most counts,
and one of another key takes a place of that key's."""
ELSEWHERE = "elsewhere"
"""Stands for the API key of users that other replicas told of."""
MAX_UNSENT = 10_000
"""Bad attempts kept for the other replicas while Redis is away; the oldest are dropped."""
CAPPED = "capped"
"""Arm in the metrics of an attempt of a rollout that does not count."""
JUDGED_ARMS = frozenset((Arm.stable.value, Arm.candidate.value))
MINUTE_S = 60


@dataclass(frozen=True, slots=True)
class VoteCaps:
    """How many attempts count a minute over all replicas; 0 is no bound."""

    key: int = 6_000
    """Of an API key, in each rollout."""
    tenant: int = 12_000
    nobody: int = 0
    """Of an API key's requests without user and session, each its own voter; 0: none counts."""


@dataclass(slots=True)
class VotesCast:
    """What a user cast on a day (its ordinal), brought by an API key."""

    day: int
    brought_by: str
    attempts: int = 0
    bad: int = 0


@dataclass(frozen=True, slots=True)
class BadVote:
    """A bad attempt that counted: the user's digest, and the day's ordinal."""

    voter: int
    day: int


VoteGroup = tuple[str, str, str]
"""rollout, kind and name of what has votes of a minute together."""


class VoteLimits:
    """Counts each user's attempts of a day, those of keys and tenants a minute; says which count."""

    def __init__(self, caps: VoteCaps = VoteCaps(), *, max_voters: int = MAX_VOTERS) -> None:
        self._caps = caps
        self._max_voters = max_voters
        self._cast: dict[int, VotesCast] = {}
        self._brought: dict[str, deque[int]] = {}
        self._cleared_on = 0
        self._minute = 0
        self._this_minute: dict[VoteGroup, int] = {}
        self._elsewhere: dict[VoteGroup, int] = {}
        self._unsent: deque[BadVote] = deque(maxlen=MAX_UNSENT)

    def arm(self, call: Call, attempt: EngineAttempt) -> str:
        """The arm that an attempt which has ended counts for: its own, or `capped`."""
        if not call.choice.rollout or attempt.arm not in JUDGED_ARMS:
            return attempt.arm
        if attempt.outcome is Outcome.client_error:
            return attempt.arm
        request = call.request
        kind, key = key_of(request.user, request.session, request.trace_id)
        groups = self._groups(call, nobody=kind is KeyKind.trace)
        if groups is None:
            return CAPPED
        if kind is not KeyKind.trace:
            voter = digest(call.choice.rollout, call.tenant, kind, key)
            day = call.started_at.toordinal()
            votes = self._votes(voter, day, call.key_id)
            if votes is None or votes.attempts >= ATTEMPTS_PER_DAY or votes.bad >= BAD_PER_DAY:
                return CAPPED
            votes.attempts += 1
            if _bad(call, attempt):
                votes.bad += 1
                self._unsent.append(BadVote(voter, day))
        for group in groups:
            self._this_minute[group] = self._this_minute.get(group, 0) + 1
        return attempt.arm

    def unsent(self) -> list[BadVote]:
        """The bad attempts that the other replicas do not know of yet; they are forgotten here."""
        found = list(self._unsent)
        self._unsent.clear()
        return found

    def heard(self, vote: BadVote) -> None:
        """Count a bad attempt that another replica, or this one before its restart, let in."""
        known = self._cast.get(vote.voter)
        if known is not None and known.day > vote.day:
            return
        votes = self._votes(vote.voter, vote.day, ELSEWHERE)
        if votes is not None:
            votes.bad += 1

    def this_minute(self) -> tuple[int, dict[VoteGroup, int]]:
        """The newest minute of unix time, and what each group had of its votes here."""
        return self._minute, dict(self._this_minute)

    def heard_of_minute(self, minute: int, elsewhere: dict[VoteGroup, int]) -> None:
        """Take note of what groups had of a minute's votes on other replicas."""
        if minute == self._minute:
            self._elsewhere = elsewhere

    def _groups(self, call: Call, *, nobody: bool) -> list[VoteGroup] | None:
        """What the attempt takes a vote of this minute from; None where one has none left."""
        minute = int(call.started_at.timestamp()) // MINUTE_S
        if minute > self._minute:
            self._minute = minute
            self._this_minute, self._elsewhere = {}, {}
        caps, rollout = self._caps, call.choice.rollout
        here, there = self._this_minute, self._elsewhere
        if nobody and not caps.nobody:
            return None
        groups: list[VoteGroup] = []
        for kind, name, most in (
            ("key", call.key_id, caps.key),
            ("tenant", call.tenant, caps.tenant),
            ("nobody", call.key_id, caps.nobody if nobody else 0),
        ):
            if most:
                group = (rollout, kind, name)
                if here.get(group, 0) + there.get(group, 0) >= most:
                    return None
                groups.append(group)
        return groups

    def _votes(self, voter: int, day: int, key_id: str) -> VotesCast | None:
        """The user's votes of the day; None where there is no room for the user."""
        votes = self._cast.get(voter)
        if votes is not None and votes.day == day:
            return votes
        if votes is not None:
            key_id = votes.brought_by
        elif self._make_room(day, key_id):
            self._brought.setdefault(key_id, deque()).append(voter)
        else:
            return None
        votes = self._cast[voter] = VotesCast(day, key_id)
        return votes

    def _make_room(self, day: int, key_id: str) -> bool:
        """Whether the table has room for a user that an API key brings.

        Made-up users of one key push out none but each other: whoever is forgotten belongs to the
        key with most users, which gets no place back while the table is full.
        """
        if len(self._cast) < self._max_voters:
            return True
        self._clear(day)
        if len(self._cast) < self._max_voters:
            return True
        largest = max(self._brought, key=lambda key: len(self._brought[key]))
        if len(self._brought.get(key_id, ())) + 1 >= len(self._brought[largest]):
            return False
        del self._cast[self._brought[largest].popleft()]
        return True

    def _clear(self, day: int) -> None:
        """Forget the votes of days before, once a day: reading all of them takes milliseconds."""
        if day <= self._cleared_on:
            return
        self._cleared_on = day
        self._cast = {key: kept for key, kept in self._cast.items() if kept.day == day}
        self._brought = {}
        for voter, kept in self._cast.items():
            self._brought.setdefault(kept.brought_by, deque()).append(voter)


def vote_figures(call: Call, attempt: EngineAttempt, *, capped: bool) -> tuple[str, ...]:
    """What an attempt adds to its voters' counts (`voter_counts.FIGURES`)."""
    outcome = attempt.outcome
    early = outcome is Outcome.cancelled and attempt.duration_s < call.slow_after_s
    if outcome is Outcome.client_error or early:
        return ()
    if capped:
        return ("capped",)
    figures = ["requests"]
    if outcome in FAILED:
        figures.append("failures")
    if outcome is Outcome.crash:
        figures.append("crashes")
    if attempt.waited_s > call.slow_after_s:
        figures.append("slow")
    gap_s = call.max_gap_s if attempt.first_token_at else None
    if gap_s is not None:
        figures.append("streams")
        if gap_s > STALLED_AFTER_S:
            figures.append("stalls")
    return tuple(figures)


def _bad(call: Call, attempt: EngineAttempt) -> bool:
    """Whether it failed, was late, or hung between two tokens."""
    return (
        attempt.outcome in FAILED
        or attempt.waited_s > call.slow_after_s
        or (call.max_gap_s or 0.0) > STALLED_AFTER_S
    )
