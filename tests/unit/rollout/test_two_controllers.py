"""Two controllers, a Redis that forgets and a log that goes away: one history comes out."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from services.rollout.decision_log import DecisionLog
from services.rollout.errors import LeadershipLost, RolloutError
from shared.contracts.events.rollouts import Decision, Phase
from shared.contracts.topics import ROLLOUT_HOLDS, ROLLOUTS, VERSIONS
from shared.kafka.log import LogUnavailable
from shared.registry.routing import RoutingState
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.unit.rollout.fakes import ControllerHarness, FakeRedis, register, start, traffic

EVENTS = 60


class SharedView:
    """What routers see in Redis: the Lua compare keeps older states out."""

    def __init__(self) -> None:
        self.state: RoutingState | None = None
        self.seen: list[RoutingState] = []

    async def put(self, state: RoutingState) -> bool:
        if self.state is not None and state.order < self.state.order:
            return False
        self.state = state
        self.seen.append(state)
        return True


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_the_log_tells_one_story(seed: int, tmp_path: Path) -> None:
    generator, clock = random.Random(seed), ManualClock()
    log = MemoryLog(partitions={ROLLOUTS: 1, ROLLOUT_HOLDS: 1, VERSIONS: 1}, clock=clock)
    redis, view = FakeRedis(clock), SharedView()
    await register(log, "v1")
    await register(log, "v2")
    rigs = [
        ControllerHarness(log, redis, clock, tmp_path, holder, view=view)
        for holder in ("one", "two")
    ]
    for harness in rigs:
        await harness.caught_up()
    requests = 0.0
    try:
        for _ in range(EVENTS):
            harness = generator.choice(rigs)
            match generator.choice(["round"] * 6 + ["flush", "wait", "away", "start"]):
                case "flush":
                    redis.flush()
                case "wait":
                    clock.advance(7.0)
                case "away":
                    log.available = not log.available
                case "start":
                    with contextlib.suppress(RolloutError, LogUnavailable, LeadershipLost):
                        await start(harness)
                case _:
                    unfinished = harness.decision_log.unfinished_of("m")
                    if unfinished is not None:
                        requests += 5.0
                        traffic(harness, unfinished.state, requests)
                    with contextlib.suppress(LogUnavailable, LeadershipLost):
                        await harness.round()
        log.available = True
        redis.flush()
        clock.advance(30.0)
        await rigs[0].caught_up()
        for harness in (rigs[0], rigs[1], rigs[0], rigs[1]):
            await harness.caught_up()
            with contextlib.suppress(LeadershipLost):
                await harness.round()
        _check(log, view, rigs)
    finally:
        for harness in rigs:
            await harness.close()


def _check(log: MemoryLog, view: SharedView, rigs: list[ControllerHarness]) -> None:
    reader = DecisionLog()
    accepted: list[Decision] = []
    holds = [
        Decision.model_validate_json(record.value)
        for record in log.all(ROLLOUT_HOLDS)
        if record.value
    ]
    for record in log.all(ROLLOUTS):
        before = reader.routing.get("m")
        reader.apply(record)
        state = reader.routing.get("m")
        if state is not None and state != before and record.value:
            accepted.append(Decision.model_validate_json(record.value))
    orders = [(one.token, one.seq) for one in accepted]
    assert orders == sorted(orders)
    # Nobody saw a state that the log does not tell, and the last one rules.
    for record in log.all(ROLLOUT_HOLDS):
        reader.apply(record)
    told = {one.order for one in (*accepted, *holds)}
    assert {state.order for state in view.seen} <= told
    assert view.state == reader.routing.get("m")
    # Within a rollout weights only rise, but for the fall to 0 that ends it.
    for history in reader.histories("m"):
        weights = [one.weight for one in history.all()]
        rising = weights[:-1] if history.state.phase is Phase.degraded else weights
        assert rising == sorted(rising)
    assert sum(harness.leadership.leads for harness in rigs) == 1
