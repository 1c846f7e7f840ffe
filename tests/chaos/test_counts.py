"""The three counts agree when aggregator, feedback service and router are killed under load.

The clients' own tally, a recount of the log that shares no code with the aggregator, and the
metrics. Real Kafka, Redis and services; the engine is a stub, as no answer's wording matters here.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

import demo.users
from demo import tastes
from demo.counts import Exported, exported
from demo.recount import Recount, recount
from demo.users import MODEL, Users
from deploy.local.stack import Stack
from shared.kafka.producer import KafkaLog
from shared.registry.versions import Lifecycle
from tests.support.rollouts import decide, register
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(600)

STABLE = f"{MODEL}-v1.0"
SEED = 5
ROUNDS = 2
BEFORE_KILL_S = (3.0, 6.0)
BACK_S = 90.0
RETRY_PAUSE_S = 4.0
"""Clients keep at it until a killed service is back, on a slow machine too."""
SETTLE_S = 180.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    processes = {
        "engine": {
            "about": "answers everything the same way",
            "module": "benchmarks.stub_engine",
            "arguments": ["--port", "${port.engine}"],
            "ports": {"engine": 8000},
            "ready": {"http": "${url.engine}/"},
        },
        "router": {"env": {"RATCHET_ROUTER_ENGINES": "${url.engine}"}},
    }
    with Stack(
        tmp_path_factory.mktemp("counts"),
        services=["engine", "router", "feedback", "aggregator"],
        processes=processes,
        ports="free",
        say=lambda _: None,
    ) as started:
        yield started


async def read_metrics(stack: Stack) -> Exported:
    async with httpx.AsyncClient(timeout=10) as client:
        pages = [
            (await client.get(f"{stack.url(name)}/metrics")).text
            for name in ("router", "aggregator")
        ]
    return exported(*pages)


def answers(counts: Counter[tuple[str, str]]) -> dict[str, int]:
    return {version: count for (version, outcome), count in counts.items() if outcome == "ok"}


async def test_counts_agree_whatever_is_killed(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo.users, "RETRY_PAUSE_S", RETRY_PAUSE_S)
    log = KafkaLog(stack.address("kafka"), source="/ratchet/test")
    await log.start()
    await register(log, STABLE, Lifecycle.stable, model=MODEL, day=0)
    await decide(log, MODEL, stable=STABLE)
    await log.stop()
    users = Users(
        tastes.population(SEED),
        router_url=stack.url("router"),
        feedback_url=stack.url("feedback"),
        seed=SEED,
    )

    async def answering() -> bool:
        async with httpx.AsyncClient(timeout=5) as client:
            models = await client.get(f"{stack.url('router')}/v1/models")
            return STABLE in models.text

    await eventually(answering, "the router knows the version", timeout_s=30)
    stop, rng = asyncio.Event(), random.Random(SEED)
    plan = users.plan
    plan.chats_per_s, plan.votes_per_s, plan.panel_votes_per_s = 25.0, 3.0, 0.0
    plan.feedback_share = 0.5
    running = asyncio.create_task(users.run(stop))
    for _ in range(ROUNDS):
        for name in ("aggregator", "feedback", "router"):
            await asyncio.sleep(rng.uniform(*BEFORE_KILL_S))
            before = await asyncio.to_thread(stack.kill, name)
            await eventually(
                lambda name=name, before=before: stack.seen()[name].pid not in (0, before),
                f"{name} is started again",
                timeout_s=BACK_S,
            )
            await asyncio.to_thread(stack.wait_ready, name, BACK_S)
    stop.set()
    await running
    await users.settle(SETTLE_S)
    tally, problems = users.tally, list(users.seen.problems)
    await users.close()

    async def whole() -> tuple[Recount, Exported] | None:
        """Both recounts, once all that was accepted has arrived in the log and was counted."""
        truth, metrics = await recount(stack.address("kafka")), await read_metrics(stack)
        logged = sum(answers(truth.requests).values())
        if logged < sum(answers(tally.requests).values()) or truth.unjoined:
            return None
        return (truth, metrics) if metrics.feedback == truth.feedback else None

    truth, metrics = await eventually(whole, "log and metrics agree", timeout_s=SETTLE_S)
    assert tally.total_feedback > 100
    assert tally.feedback == truth.feedback == metrics.feedback, problems
    assert tally.votes == truth.votes == metrics.votes
    for version, seen in answers(tally.requests).items():
        # An answer that a kill cut off may be in the log; one that left whole always is.
        assert seen <= answers(truth.requests)[version] <= seen + 2 * tally.uncertain
