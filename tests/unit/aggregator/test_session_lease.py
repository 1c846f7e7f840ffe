"""The session lease lapses half a session after the last heartbeat that the coordinator confirmed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from aiokafka.errors import NoError, RebalanceInProgressError, UnknownMemberIdError
from aiokafka.protocol.group import HeartbeatRequest

from services.aggregator.session_lease import SessionLease

SESSION_S = 10.0


class SteppedUptime:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def armed(clock: SteppedUptime) -> SessionLease:
    lease = SessionLease(SESSION_S, now=clock)
    lease.armed = True
    return lease


def test_without_a_confirmed_heartbeat_it_is_not_valid() -> None:
    assert not armed(SteppedUptime()).valid()


def test_without_partitions_there_is_nothing_to_lose() -> None:
    assert SessionLease(SESSION_S, now=SteppedUptime()).valid()


def test_it_counts_from_the_sending_not_from_the_answer() -> None:
    clock = SteppedUptime()
    lease = armed(clock)
    clock.now = 4.0
    lease.answered(NoError.errno, 0.0)
    assert lease.valid()
    clock.now = 5.1
    assert not lease.valid()
    lease.answered(NoError.errno, 5.0)
    assert lease.valid()


def test_a_refused_heartbeat_does_not_extend_it() -> None:
    clock = SteppedUptime()
    lease = armed(clock)
    lease.answered(NoError.errno, 0.0)
    clock.now = 5.1
    lease.answered(UnknownMemberIdError.errno, 5.0)
    assert not lease.valid()


def test_a_rebalance_extends_it_by_one_session_at_most() -> None:
    clock = SteppedUptime()
    lease = armed(clock)
    for second in range(0, 31, 2):
        clock.now = float(second)
        lease.answered(RebalanceInProgressError.errno, clock.now)
    assert not lease.valid()
    lease.answered(NoError.errno, clock.now)
    assert lease.valid()
    clock.now += 2.0
    lease.answered(RebalanceInProgressError.errno, clock.now)
    clock.now += 4.0
    assert lease.valid()


def test_it_takes_the_answers_of_the_coordinator_that_it_watches() -> None:
    clock = SteppedUptime()
    lease = armed(clock)

    async def answer(_: Any) -> Any:
        clock.now += 1.0
        return SimpleNamespace(error_code=NoError.errno)

    coordinator = SimpleNamespace(_send_req=answer)
    lease.watch(coordinator)
    lease.watch(coordinator)
    clock.now = 7.0
    asyncio.run(coordinator._send_req(HeartbeatRequest("group", 1, "member")))
    clock.now = 12.0
    assert lease.valid()
    clock.now = 12.1
    assert not lease.valid()


def test_other_requests_do_not_extend_it() -> None:
    lease = armed(SteppedUptime())

    async def answer(_: Any) -> Any:
        return SimpleNamespace(error_code=NoError.errno)

    coordinator = SimpleNamespace(_send_req=answer)
    lease.watch(coordinator)
    asyncio.run(coordinator._send_req(object()))
    assert not lease.valid()
