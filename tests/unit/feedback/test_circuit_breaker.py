"""The breaker never lets more wait than it may, and always lets a try through again."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.feedback.circuit_breaker import Admission, CircuitBreaker, Refusal, State

LIMIT = 100


def admitted(breaker: CircuitBreaker, events: int, now: float) -> Admission:
    answer = breaker.admit(events, now)
    assert isinstance(answer, Admission)
    return answer


def test_one_failure_opens_and_one_success_closes() -> None:
    breaker = CircuitBreaker(max_waiting=LIMIT, open_s=0.5)
    breaker.failed(admitted(breaker, 1, 0.0), 4.0)
    assert breaker.admit(1, 4.4) == Refusal(busy=False, retry_after_s=1)
    probe = admitted(breaker, 1, 4.5)
    assert probe.probe
    assert breaker.admit(1, 4.6) == Refusal(busy=False, retry_after_s=1), "one probe at a time"
    breaker.succeeded(probe)
    assert breaker.state(4.6) is State.closed


def test_each_failed_probe_doubles_the_pause_up_to_a_limit() -> None:
    breaker = CircuitBreaker(max_waiting=LIMIT, open_s=0.5, open_max_s=4.0)
    breaker.failed(admitted(breaker, 1, 0.0), 0.0)
    now, pauses = 0.5, []
    for _ in range(6):
        breaker.failed(admitted(breaker, 1, now), now)
        start = now
        while breaker.state(now) is State.open:
            now += 0.5
        pauses.append(now - start)
    assert pauses == [1.0, 2.0, 4.0, 4.0, 4.0, 4.0]


def test_late_failures_of_those_who_waited_do_not_prolong_it() -> None:
    breaker = CircuitBreaker(max_waiting=LIMIT, open_s=0.5)
    waiting = [admitted(breaker, 1, 0.0) for _ in range(10)]
    for n, admission in enumerate(waiting):
        breaker.failed(admission, 4.0 + n / 10)
    assert breaker.state(4.9) is State.probing


def test_a_batch_larger_than_the_limit_gets_in_alone() -> None:
    breaker = CircuitBreaker(max_waiting=10)
    large = admitted(breaker, 1000, 0.0)
    assert breaker.admit(1, 0.0) == Refusal(busy=True, retry_after_s=1)
    breaker.succeeded(large)
    admitted(breaker, 10, 0.0)
    assert breaker.admit(1, 0.0) == Refusal(busy=True, retry_after_s=1)


class BreakerMachine(RuleBasedStateMachine):
    """Any order of comings, goings and failures."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = CircuitBreaker(max_waiting=LIMIT)
        self.now = 0.0
        self.waiting: list[Admission] = []

    @rule(seconds=st.floats(0, 10))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(events=st.integers(1, LIMIT))
    def comes(self, events: int) -> None:
        answer = self.breaker.admit(events, self.now)
        if isinstance(answer, Admission):
            self.waiting.append(answer)
        else:
            assert answer.retry_after_s >= 1

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), how=st.sampled_from(["succeeded", "failed", "gave_up"]))
    def goes(self, data: st.DataObject, how: str) -> None:
        admission = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        if how == "succeeded":
            self.breaker.succeeded(admission)
            assert self.breaker.state(self.now) is State.closed
        elif how == "failed":
            self.breaker.failed(admission, self.now)
            assert self.breaker.state(self.now) is not State.closed
        else:
            self.breaker.gave_up(admission)

    @invariant()
    def counts_are_right_and_bounded(self) -> None:
        assert self.breaker.waiting == sum(admission.events for admission in self.waiting) <= LIMIT
        assert sum(admission.probe for admission in self.waiting) <= 1

    def teardown(self) -> None:
        """Once all is quiet, a try is let through within the longest pause."""
        for admission in self.waiting:
            self.breaker.failed(admission, self.now)
        assert self.breaker.waiting == 0
        assert isinstance(self.breaker.admit(1, self.now + 4.0), Admission)


TestBreaker = BreakerMachine.TestCase
TestBreaker.settings = settings(max_examples=60, stateful_step_count=30)
