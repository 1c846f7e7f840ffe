"""The circuit breaker: when it opens, what it lets through, and what the gateway does with it."""

from __future__ import annotations

import pytest

from services.router.candidate_breaker import COOLDOWN_S, MAX_ROLLOUTS, CandidateBreaker
from shared.contracts.events.interactions import Outcome
from shared.testing.clock import ManualClock
from tests.unit.router.conftest import GatewayHarness


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def breaker(clock: ManualClock) -> CandidateBreaker:
    return CandidateBreaker(clock, failures=3)


def fail(breaker: CandidateBreaker, times: int, rollout: str = "r") -> None:
    for _ in range(times):
        breaker.note(rollout, "candidate", Outcome.crash)


def test_it_opens_after_failures_in_a_row_only(breaker: CandidateBreaker) -> None:
    fail(breaker, 2)
    breaker.note("r", "candidate", Outcome.ok)
    fail(breaker, 2)
    assert not breaker.refuses("r")
    for outcome in (Outcome.client_error, Outcome.cancelled):
        breaker.note("r", "candidate", outcome)
    for arm in ("stable", "fallback", ""):
        breaker.note("r", arm, Outcome.server_error)
    assert not breaker.refuses("r")
    fail(breaker, 1)
    assert breaker.refuses("r")
    assert not breaker.refuses("another rollout")


def test_one_request_may_try_after_a_while_and_a_success_closes_it(
    breaker: CandidateBreaker, clock: ManualClock
) -> None:
    fail(breaker, 3)
    clock.advance(COOLDOWN_S)
    assert [breaker.refuses("r") for _ in range(3)] == [False, True, True]
    assert breaker.is_open("r")
    fail(breaker, 1)
    assert breaker.refuses("r")
    clock.advance(COOLDOWN_S)
    assert not breaker.refuses("r")
    breaker.note("r", "candidate", Outcome.ok)
    assert not breaker.is_open("r")
    assert [breaker.refuses("r") for _ in range(3)] == [False] * 3


def test_what_it_remembers_is_bounded(breaker: CandidateBreaker) -> None:
    for number in range(MAX_ROLLOUTS + 1):
        fail(breaker, 3, f"r{number}")
    assert not breaker.is_open("r0")
    assert breaker.is_open(f"r{MAX_ROLLOUTS}")


async def test_a_failing_candidate_gets_nothing_more_and_no_user_sees_a_failure(
    bench: GatewayHarness,
) -> None:
    await bench.start()
    bench.route(candidate="m-fail", weight=10_000)
    answers = [await bench.ask(user=f"u{number}") for number in range(12)]
    assert {answer.status_code for answer in answers} == {200}
    assert [answer.headers["x-ratchet-arm"] for answer in answers] == ["fallback"] * 5 + [""] * 7
    text = (await bench.client.get("/metrics")).text
    (row,) = [row for row in text.splitlines() if row.startswith("ratchet_router_breaker_open{")]
    assert row.endswith(" 1.0")
    # Another rollout begins with a closed breaker.
    bench.route(candidate="m-v1.1", rollout="r2", weight=10_000)
    assert (await bench.ask(user="u1")).headers["x-ratchet-arm"] == "candidate"
