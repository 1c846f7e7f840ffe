"""Attempts of a rollout as the router's vote limits see them."""

from __future__ import annotations

from datetime import UTC, datetime
from time import perf_counter

from services.router.call import Call, EngineAttempt
from services.router.request import ChatRequest
from services.router.state import RouteChoice
from shared.contracts.events.interactions import Outcome

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


def a_call(user: str, *, at: datetime = NOON, rollout: str = "r1", key: str = "k1") -> Call:
    """A request of a user that fell on the candidate."""
    request = ChatRequest.__new__(ChatRequest)
    request.user, request.session, request.trace_id = user, "", "t1"
    choice = RouteChoice(model="m", version="m-v1.1", arm="candidate", rollout=rollout)
    return Call(request, choice, "acme", perf_counter(), at, "", key_id=key)


def ended(outcome: Outcome = Outcome.ok, *, after_s: float = 0.1) -> EngineAttempt:
    """An attempt at the candidate that has ended."""
    return EngineAttempt("m-v1.1", "candidate", 0.0, outcome=outcome, duration_s=after_s)
