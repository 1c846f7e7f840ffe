"""Rollback latency: from the decision to zero requests of the candidate, on three routers."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp
import numpy as np
import pytest
from redis.asyncio import Redis

from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from shared.contracts.events.rollouts import Decision, DecisionKind, LeaderElected, Phase
from shared.contracts.topics import ROLLOUTS
from shared.http.client import request_within
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.registry.routing import RoutingState
from shared.registry.view import RoutingView

pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]

ROUTERS = ("router", "router2", "router3")
RATE = 500.0
CALL_S = 30.0
ROLLBACKS = 100
SETTLE_S = 0.4
"""Between two decisions: longer than the latency that is allowed."""
ALLOWED_S = 0.3
WARM_UP_S = 3.0


@dataclass(frozen=True, slots=True)
class RoutedAnswer:
    """One answer: when its request was sent (monotonic seconds), its arm and its status."""

    sent_at: float
    arm: str
    status: int


@pytest.fixture(scope="module")
def engine_port() -> int:
    return free_ports(["engine"])["engine"]


@pytest.fixture(scope="module")
def stack(engine_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    run_dir = tmp_path_factory.mktemp("latency")
    engines = {"RATCHET_ROUTER_ENGINES": f"http://127.0.0.1:{engine_port}"}
    more = {
        name: {
            "module": "services.router",
            "ports": {name: 18080 + number},
            "env": {
                **engines,
                "RATCHET_ROUTER_PORT": f"${{port.{name}}}",
                "RATCHET_DATA_DIR": str(run_dir / name),
            },
            "after": ["topics", "redis"],
            "ready": {"http": f"${{url.{name}}}/readyz"},
        }
        for number, name in enumerate(ROUTERS[1:])
    }
    with Stack(
        run_dir,
        services=list(ROUTERS),
        processes={"router": {"env": engines}, **more},
        ports="free",
        say=lambda _: None,
    ) as started:
        yield started


@pytest.fixture
async def engine(engine_port: int) -> AsyncIterator[None]:
    stub = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.stub_engine", "--port", str(engine_port)
    )
    yield
    stub.terminate()
    await stub.wait()


class Decisions:
    """Decides as the controller does: the log first, then the view in Redis, where there is one."""

    def __init__(self, log: KafkaLog, view: RoutingView | None, model: str) -> None:
        self._log, self._view, self._model = log, view, model
        self._token, self._seq = 0, 0

    async def lead(self) -> None:
        elected = LeaderElected(holder="test", at=datetime.now(UTC))
        position = await self._log.publish(ROLLOUTS, key="test", event=elected, event_id="elected")
        self._token = position.offset

    async def decide(self, kind: DecisionKind, phase: Phase, weight: int, number: int) -> float:
        """Returns when it was decided, in monotonic seconds."""
        decided_at = time.monotonic()
        decision = Decision(
            token=self._token,
            seq=self._seq,
            kind=kind,
            model=self._model,
            rollout_id=f"{self._model}-{number}",
            stable="v1.0",
            candidate="v1.1",
            phase=phase,
            weight=weight,
            actor="test",
            reason="a test",
            at=datetime.now(UTC),
        )
        self._seq += 1
        await self._log.publish(
            ROLLOUTS, key=decision.rollout_id, event=decision, event_id=decision.decision_id
        )
        if self._view is not None:
            await self._view.put(RoutingState.of(decision))
        return decided_at


class SteadyLoad:
    """So many requests a second, over all routers in turn, whatever the answers take."""

    def __init__(self, session: aiohttp.ClientSession, urls: list[str], model: str) -> None:
        self.answers: list[RoutedAnswer] = []
        self.lost = 0
        self._session, self._urls, self._model = session, urls, model
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        began, number = time.monotonic(), 0
        while True:
            while number < (time.monotonic() - began) * RATE:
                task = asyncio.create_task(self._ask(number))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
                number += 1
            await asyncio.sleep(1 / RATE)

    async def end(self) -> None:
        await asyncio.gather(*self._running)

    async def _ask(self, number: int) -> None:
        body = {
            "model": self._model,
            "user": f"user-{number % 997}",
            "messages": [{"role": "user", "content": "Where is my parcel?"}],
        }
        url = f"{self._urls[number % len(self._urls)]}/v1/chat/completions"
        sent_at = time.monotonic()
        try:
            async with request_within(CALL_S, self._session, "POST", url, json=body) as answer:
                await answer.read()
                arm = answer.headers.get("x-ratchet-arm", "")
                self.answers.append(RoutedAnswer(sent_at, arm, answer.status))
        except (aiohttp.ClientError, TimeoutError):
            self.lost += 1


@pytest.mark.parametrize("redis_takes_part", [True, False], ids=["by Redis", "by the log alone"])
async def test_a_rollback_reaches_every_router_within_300_ms(
    stack: Stack,
    engine: None,
    unique: str,
    redis_takes_part: bool,
    record_property: Callable[[str, object], None],
) -> None:
    log = KafkaLog(KafkaConnection(stack.address("kafka")), source="/ratchet/test", linger_ms=0)
    await log.start()
    redis = Redis.from_url(f"redis://{stack.address('redis')}/0")
    decisions = Decisions(log, RoutingView(redis) if redis_takes_part else None, unique)
    await decisions.lead()
    rolled_back: list[tuple[float, float]] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=300)) as session:
        load = SteadyLoad(session, [stack.url(name) for name in ROUTERS], unique)
        await decisions.decide(DecisionKind.weight, Phase.progressing, 5_000, 0)
        driving = asyncio.create_task(load.run())
        try:
            await asyncio.sleep(WARM_UP_S)
            load.answers.clear()
            for number in range(ROLLBACKS):
                at = await decisions.decide(DecisionKind.rollback, Phase.degraded, 0, number)
                await asyncio.sleep(SETTLE_S)
                again = await decisions.decide(
                    DecisionKind.weight, Phase.progressing, 5_000, number + 1
                )
                rolled_back.append((at, again))
                await asyncio.sleep(SETTLE_S)
        finally:
            driving.cancel()
            await load.end()
            await redis.aclose()
            await log.stop()
    latencies: list[float] = []
    for at, again in rolled_back:
        late = [
            one.sent_at - at
            for one in load.answers
            if one.arm == "candidate" and at < one.sent_at < again
        ]
        latencies.append(max(late, default=0.0))
    p99 = float(np.quantile(latencies, 0.99))
    record_property("answers", str(len(load.answers)))
    record_property("p50_ms", f"{np.median(latencies) * 1000:.0f}")
    record_property("p99_ms", f"{p99 * 1000:.0f}")
    print(f"{len(load.answers)} answers, p50 {np.median(latencies):.3f} s, p99 {p99:.3f} s")
    assert (load.lost, {one.status for one in load.answers}) == (0, {200})
    assert sum(one.arm == "candidate" for one in load.answers) > ROLLBACKS
    assert p99 <= ALLOWED_S, f"p99 {p99:.3f} s of {sorted(latencies)[-5:]}"
