"""Users at a stack whose engine is a stub, and the three counts of what they did.

Real Kafka, Redis and services; no answer's wording matters to those who count.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from demo import tastes
from demo.counts import Exported, exported
from demo.recount import LogRecount, recount
from demo.users import MODEL, SimulatedUsers
from deploy.local.stack import Stack
from shared.contracts.events.versions import Lifecycle
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from tests.support.rollouts import decide, register
from tests.support.waiting import eventually

STABLE = f"{MODEL}-v1.0"
ENOUGH_FEEDBACK = 100
BACK_S = 90.0
PATIENCE_S = 150.0
"""Clients keep at it until a killed service is back, on a slow machine too."""
PROCESSES: dict[str, dict[str, Any]] = {
    "engine": {
        "about": "answers everything the same way",
        "module": "benchmarks.stub_engine",
        "arguments": ["--port", "${port.engine}"],
        "ports": {"engine": 8000},
        "ready": {"http": "${url.engine}/"},
    },
    "router": {"env": {"RATCHET_ROUTER_ENGINES": "${url.engine}"}},
}


def counting_stack(run_dir: Path, *further: str, env: Mapping[str, str] | None = None) -> Stack:
    """Router, feedback, aggregator and further services before a stub engine, not entered yet."""
    return Stack(
        run_dir,
        services=["engine", "router", "feedback", "aggregator", *further],
        processes=PROCESSES,
        env=env,
        ports="free",
        say=lambda _: None,
    )


async def serve_first_version(stack: Stack) -> None:
    """Make v1.0 stable, as training and rollout would, and wait until the router knows."""
    log = KafkaLog(KafkaConnection(stack.address("kafka")), source="/ratchet/test")
    await log.start()
    await register(log, STABLE, Lifecycle.stable, model=MODEL, day=0)
    await decide(log, MODEL, stable=STABLE)
    await log.stop()

    async def answering() -> bool:
        async with httpx.AsyncClient(timeout=60) as client:
            models = await client.get(f"{stack.url('router')}/v1/models")
            return STABLE in models.text

    await eventually(answering, "the router knows the version")


@asynccontextmanager
async def chatting(
    stack: Stack, *, seed: int, chats_per_s: float, votes_per_s: float, settle_s: float
) -> AsyncIterator[SimulatedUsers]:
    """Users under load while the block runs; all they began has ended after it."""
    users = SimulatedUsers(
        tastes.population(seed),
        router_url=stack.url("router"),
        feedback_url=stack.url("feedback"),
        seed=seed,
        patience_s=PATIENCE_S,
    )
    plan = users.plan
    plan.chats_per_s, plan.votes_per_s = chats_per_s, votes_per_s
    plan.feedback_share = 0.5
    stop = asyncio.Event()
    running = asyncio.create_task(users.run(stop))
    try:
        yield users
        stop.set()
        await running
        await users.settle(settle_s)
    finally:
        running.cancel()
        await users.close()


async def kill(stack: Stack, name: str) -> None:
    """SIGKILL, and back when it is ready again."""
    before = await asyncio.to_thread(stack.kill, name)
    await eventually(
        lambda: stack.seen()[name].pid not in (0, before),
        f"{name} is started again",
        timeout_s=BACK_S,
    )
    await asyncio.to_thread(stack.wait_ready, name, BACK_S)


def answers(counts: Counter[tuple[str, str]]) -> dict[str, int]:
    """Answers that left whole, by version."""
    return {version: count for (version, outcome), count in counts.items() if outcome == "ok"}


async def counts_agree(stack: Stack, users: SimulatedUsers, *, settle_s: float) -> None:
    """The clients' tally, a recount of the log and the metrics say the same.

    An answer that was cut off on its way may be in the log; one that left whole always is.
    """
    tally, problems = users.tally, list(users.seen.problems)

    async def whole() -> tuple[LogRecount, Exported] | None:
        """Both recounts, once all that was accepted has arrived in the log and was counted."""
        truth, metrics = await recount(stack.address("kafka")), await _metrics(stack)
        logged = sum(answers(truth.requests).values())
        if logged < sum(answers(tally.requests).values()) or truth.unjoined:
            return None
        return (truth, metrics) if metrics.feedback == truth.feedback else None

    both = await eventually(whole, "log and metrics agree", timeout_s=settle_s)
    assert both is not None
    truth, metrics = both
    assert tally.total_feedback > ENOUGH_FEEDBACK
    assert tally.feedback == truth.feedback == metrics.feedback, problems
    assert tally.votes == truth.votes == metrics.votes
    for version, seen in answers(tally.requests).items():
        assert seen <= answers(truth.requests)[version] <= seen + 2 * tally.uncertain


async def _metrics(stack: Stack) -> Exported:
    async with httpx.AsyncClient(timeout=60) as client:
        pages = [
            (await client.get(f"{stack.url(name)}/metrics")).text
            for name in ("router", "aggregator")
        ]
    return exported(*pages)
