"""Fault table of a rollout (docs/rollout.md) on the real service, router, Kafka, Redis, Prometheus.

One stack serves the whole table. Each rollout must end where the design says, with its reason on
record. What a candidate or both arms do wrong is tried on one model each, all at the same time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
import pytest_asyncio

from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from tests.support.candidate_engine import CandidateEngine
from tests.support.faulty_links import CuttableLink, FaultyPrometheus
from tests.support.rollout_harness import (
    HOST,
    RolloutHarness,
    StandInAgent,
    VersionBehaviour,
    weights,
)
from tests.support.rollout_stack import rollout_and_router
from tests.support.routed_users import RoutedUsers
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

HALF = 5_000
STALE_AFTER_S = 15
STRATEGY = {
    "name": "half",
    "steps": [
        {"setWeight": 50, "errorLimit": 0.05},
        {"pause": {"duration": "1h"}},
        {"analysis": {}},
        {"setWeight": 100, "errorLimit": 0.05},
        {"pause": {"duration": "1s"}},
    ],
    "noDataAfter": "5s",
}
"""Stays at 50 % until somebody or something moves it."""
SOON_IDLE = {**STRATEGY, "name": "soon-idle", "noDataAfter": "2s"}
GATED = {
    **STRATEGY,
    "name": "gated",
    "steps": [
        {"setWeight": 5},
        {"analysis": {}},
        {"pause": {}},
        {"setWeight": 50},
        {"pause": {"duration": "1s"}},
        {"analysis": {}},
        {"setWeight": 100},
        {"pause": {"duration": "1s"}},
    ],
}
ALLOWED_S = 1.0
"""For one rollback on a busy machine; tests/chaos/test_rollback_latency.py asks for 0.3 s at p99."""

Open = Callable[..., Awaitable[RolloutHarness]]


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return free_ports(["agent", "engine", "prometheus-link", "redis-link"])


@pytest.fixture(scope="module")
def stack(ports: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with rollout_and_router(
        tmp_path_factory.mktemp("faults"),
        STRATEGY,
        ports,
        rollout_env={
            "RATCHET_PROMETHEUS_URL": f"http://{HOST}:{ports['prometheus-link']}",
            "RATCHET_ROLLOUT_LOOK_INTERVAL_S": "0.5",
            "RATCHET_ROLLOUT_HOLD_INTERVAL_S": "2",
        },
        router_env={
            "RATCHET_REDIS_URL": f"redis://{HOST}:{ports['redis-link']}/0",
            "RATCHET_ROUTER_STALE_AFTER_S": str(STALE_AFTER_S),
        },
    ) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def prometheus(stack: Stack, ports: dict[str, int]) -> AsyncIterator[FaultyPrometheus]:
    async with FaultyPrometheus(ports["prometheus-link"], stack.url("prometheus")) as link:
        yield link


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def redis_link(stack: Stack, ports: dict[str, int]) -> AsyncIterator[CuttableLink]:
    """Between the router and Redis."""
    async with CuttableLink(ports["redis-link"], stack.address("redis")) as link:
        yield link


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engine(ports: dict[str, int]) -> AsyncIterator[CandidateEngine]:
    made = CandidateEngine(ports["engine"])
    await made.open()
    yield made
    await made.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def opened(
    stack: Stack,
    prometheus: FaultyPrometheus,
    redis_link: CuttableLink,
    engine: CandidateEngine,
    ports: dict[str, int],
) -> AsyncIterator[Open]:
    """Opens a harness for a model whose v1.0 is stable and whose v1.1 is registered."""
    agent = StandInAgent()
    await agent.open(ports["agent"])

    async def open_harness(model: str, rate: float = 40.0) -> RolloutHarness:
        made = RolloutHarness(
            model,
            kafka=stack.address("kafka"),
            redis_url=f"redis://{stack.address('redis')}/0",
            rollout_url=stack.url("rollout"),
            rate=rate,
        )
        await made.open()
        agent.harnesses.append(made)
        stack.scrape(f"routers of {model}", made.addresses)
        stack.scrape(f"scores of {model}", [made.score_address])
        await made.register(f"{model}-v1.0")
        await eventually(lambda: made.state is not None, "v1.0 becomes stable by itself")
        await made.register(f"{model}-v1.1")
        await eventually(lambda: made.version_state(f"{model}-v1.1"), "v1.1 is known")
        return made

    yield open_harness
    for harness in agent.harnesses:
        await harness.close()
    await agent.close()


@pytest_asyncio.fixture(loop_scope="module")
async def harness(opened: Open, stack: Stack, unique: str) -> AsyncIterator[RolloutHarness]:
    """A model of the test's own; its rollout and its users end with the test."""
    made = await opened(unique)
    yield made
    made.rate = 0.0
    rollout = await made.current()
    if rollout and rollout["ended_at"] is None:
        await made.http.post(f"/v1/rollouts/{rollout['rollout_id']}/abort", json={})


async def begin(harness: RolloutHarness, strategy: dict[str, Any] = STRATEGY) -> str:
    """Start a rollout; returns its id."""
    candidate = f"{harness.model}-v1.1"
    body = {"model": harness.model, "candidate": candidate, "strategy": strategy}
    answer = await harness.http.post("/v1/rollouts", json={**body, "again": True, "reason": "test"})
    assert answer.status_code == 201, answer.text
    return answer.json()["rollout_id"]


async def at_weight(harness: RolloutHarness, weight: int = HALF) -> None:
    await eventually(
        lambda: harness.state is not None and harness.state.weight == weight,
        f"weight {weight}",
    )


async def recorded(
    harness: RolloutHarness, reason: str, *, timeout_s: float = 60, **fields: Any
) -> dict[str, Any]:
    """The rollout, once it is as `fields` say and a decision on record has `reason` in its own."""

    async def found() -> dict[str, Any]:
        rollout = await harness.current()
        if any(rollout.get(name) != value for name, value in fields.items()):
            return {}
        decisions = await harness.decisions(rollout["rollout_id"])
        return rollout if any(reason in one["reason"] for one in decisions) else {}

    return await eventually(found, f"{fields} because of {reason}", timeout_s)


async def counted_exactly(harness: RolloutHarness) -> bool:
    """Whether the service has counted what the users did, no more and no less."""
    rollout = await harness.current()
    real = {arm: harness.counts[rollout["rollout_id"], arm] for arm in ("candidate", "stable")}
    return all(rollout["requests"][arm] == tally.requests for arm, tally in real.items())


HARM = {
    "latency alone": VersionBehaviour(slow=0.4),
    "satisfaction alone": VersionBehaviour(score=0.2),
    "errors, stable has none": VersionBehaviour(failing=0.3),
}
ROLLED_BACK = {"phase": "Degraded", "weight": 0, "outcome": "Failed"}
HELD = {"phase": "Progressing", "weight": HALF, "outcome": "Inconclusive", "needs_person": True}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def crowd(opened: Open) -> dict[str, RolloutHarness]:
    """One model for each wrong behaviour, all in their rollouts at the same time."""
    names = (*HARM, "errors on both arms", "slow on both arms", "not the adapter", "no request")
    models = {name: f"crowd-{number}" for number, name in enumerate(names)}
    made = dict(
        zip(names, await asyncio.gather(*(opened(one) for one in models.values())), strict=True)
    )
    for name, behaviour in HARM.items():
        made[name].behaviours[f"{models[name]}-v1.1"] = behaviour
    for version in ("v1.0", "v1.1"):
        both = made["errors on both arms"]
        both.behaviours[f"{both.model}-{version}"] = VersionBehaviour(failing=0.3)
        slow = made["slow on both arms"]
        slow.behaviours[f"{slow.model}-{version}"] = VersionBehaviour(slow=1.0)
    made["no request"].uncounted.add("candidate")
    await asyncio.gather(
        *(begin(one, SOON_IDLE if name == "no request" else STRATEGY) for name, one in made.items())
    )
    await at_weight(made["not the adapter"])
    wrong = f"{models['not the adapter']}-v1.1"
    made["not the adapter"].loaded.discard(wrong)
    made["not the adapter"].refused[wrong] = "answers differ from the fingerprint"
    return made


@pytest.mark.parametrize(
    ("name", "reason", "ends"),
    [
        ("latency alone", "slow", ROLLED_BACK),
        ("satisfaction alone", "satisfaction", ROLLED_BACK),
        ("errors, stable has none", "error", ROLLED_BACK),
        ("not the adapter", "AdapterRefused", ROLLED_BACK),
        ("errors on both arms", "on both arms: see to the engine", HELD),
        (
            "no request",
            "request of the candidate for",
            {"phase": "Progressing", "weight": HALF, "outcome": "NoData"},
        ),
    ],
)
async def test_what_versions_do_wrong_ends_where_the_design_says(
    crowd: dict[str, RolloutHarness], name: str, reason: str, ends: dict[str, Any]
) -> None:
    await recorded(crowd[name], reason, timeout_s=120, **ends)


async def slow_on_both(harness: RolloutHarness, timeout_s: float = 60) -> None:
    """Both arms are slow, by the judge's own figures, and the rollout stays as it is."""

    async def told() -> bool:
        findings = (await harness.current()).get("findings", ())
        slow = [one for one in findings if one["criterion"] == "slow_ratio"]
        return any(min(one["candidate"] or 0, one["stable"] or 0) > 0.9 for one in slow)

    await eventually(told, "the judge sees that both arms are slow", timeout_s)
    await recorded(harness, "", outcome="Successful", phase="Progressing", weight=HALF)


async def test_slow_answers_on_both_arms_take_nobody_back(
    crowd: dict[str, RolloutHarness],
) -> None:
    await slow_on_both(crowd["slow on both arms"])


@pytest.mark.verify
async def test_no_measurement_of_prometheus_that_fails_decides_or_loses_anything(
    stack: Stack, harness: RolloutHarness, prometheus: FaultyPrometheus
) -> None:
    name = await begin(harness)
    await at_weight(harness)
    await recorded(harness, "", outcome="Successful")
    try:
        for fault, outcome, reason in (
            ("slow", "Error", "Prometheus: no answer within"),
            ("nan", "Error", "is no count"),
            ("empty", "NoData", "no new sample for"),
        ):
            prometheus.fault = fault  # pyright: ignore[reportAttributeAccessIssue]
            await recorded(harness, reason, outcome=outcome, phase="Progressing", weight=HALF)
            prometheus.fault = ""
            await recorded(harness, "", outcome="Successful")
    finally:
        prometheus.fault = ""
    # A scrape target under another name is the same router: its counters go on where they stopped.
    stack.scrape(f"renamed {harness.model}", harness.addresses)
    stack.scrape(f"routers of {harness.model}", [])
    await eventually(lambda: harness.counts[name, "candidate"].requests > 400, "more requests")
    harness.rate = 0.0
    await eventually(lambda: counted_exactly(harness), "every request counts once")
    kinds = {one["kind"] for one in await harness.decisions(name)}
    assert kinds == {"start", "weight", "hold"}


async def test_a_rollback_reaches_the_router_at_once(stack: Stack, harness: RolloutHarness) -> None:
    harness.rate = 0.0
    async with RoutedUsers(stack.url("router"), harness.model, rate=100.0) as users:
        name = await begin(harness)
        await at_weight(harness)
        await eventually(lambda: _arms(users) >= {"candidate", "stable"}, "both arms")
        await harness.http.post(f"/v1/rollouts/{name}/abort", json={"reason": "seen enough"})
        decided = (await harness.decisions(name))[-1]
        decided_at = datetime.fromisoformat(decided["at"]).timestamp()
        await eventually(
            lambda: sum(one.sent_at > decided_at + ALLOWED_S for one in users.answers) > 50,
            "answers from after the decision",
        )
    late = [
        one
        for one in users.answers
        if one.arm == "candidate" and one.sent_at > decided_at + ALLOWED_S
    ]
    assert not late
    assert {one.status for one in users.answers} == {200}


def _arms(users: RoutedUsers) -> set[str]:
    return {one.arm for one in users.answers}


@pytest.mark.verify
async def test_a_router_cut_off_from_redis_follows_the_log(
    stack: Stack, harness: RolloutHarness, redis_link: CuttableLink
) -> None:
    harness.rate = 0.0
    async with RoutedUsers(stack.url("router"), harness.model) as users:
        await redis_link.cut()
        try:
            name = await begin(harness)
            await eventually(lambda: "candidate" in _arms(users), "a weight by the log")
            await harness.http.post(f"/v1/rollouts/{name}/abort", json={"reason": "seen enough"})
            users.answers.clear()
            await eventually(lambda: len(users.answers) > 60, "answers after it")
            # Only the first may have been on their way.
            assert "candidate" not in {one.arm for one in users.answers[30:]}
        finally:
            await redis_link.mend()
    assert {one.status for one in users.answers} == {200}


@pytest.mark.verify
async def test_a_flushed_redis_is_filled_again_from_the_log(
    stack: Stack, harness: RolloutHarness
) -> None:
    name = await begin(harness)
    await at_weight(harness)
    seen = len(harness.states)
    await harness.flush_redis()
    await eventually(lambda: len(harness.states) > seen, "the state is published again")
    assert harness.state is not None
    assert (harness.state.rollout, harness.state.weight) == (name, HALF)
    await recorded(harness, "", outcome="Successful", weight=HALF)


@pytest.mark.verify
async def test_without_kafka_everybody_is_on_stable_until_it_is_back(
    stack: Stack, harness: RolloutHarness
) -> None:
    harness.rate = 0.0
    async with RoutedUsers(stack.url("router"), harness.model) as users:
        name = await begin(harness)
        await at_weight(harness)
        await eventually(lambda: "candidate" in _arms(users), "the candidate has users")
        stack.stop("kafka")
        try:

            def all_on_stable() -> bool:
                last = users.answers[-60:]
                return len(users.answers) > 60 and {one.arm for one in last} == {""}

            await eventually(all_on_stable, "nobody is on a candidate nobody watches", 120)
        finally:
            stack.start("kafka")
        users.answers.clear()
        await eventually(lambda: "candidate" in _arms(users), "the rollout goes on", 120)
    assert {one.status for one in users.answers} == {200}
    kinds = {one["kind"] for one in await harness.decisions(name)}
    assert kinds == {"start", "weight", "hold"}


@pytest.mark.verify
async def test_a_controller_killed_at_every_transition_goes_on(
    stack: Stack, harness: RolloutHarness
) -> None:
    """Killed as soon as each decision can be seen; its effects may be done or not."""

    async def killed_at(kind: str, weight: int) -> None:
        async def decided() -> bool:
            moves = await harness.decisions(name)
            return any((one["kind"], one["weight"]) == (kind, weight) for one in moves)

        await eventually(decided, f"{kind} {weight}", 90)
        stack.kill("rollout")
        await asyncio.to_thread(stack.wait_ready, "rollout")

    async def command(verb: str) -> None:
        async def done() -> bool:
            answer = await harness.http.post(f"/v1/rollouts/{name}/{verb}", json={"reason": "test"})
            return answer.status_code == 200

        await eventually(done, verb)

    name = await begin(harness, GATED)
    await killed_at("start", 0)
    await killed_at("weight", 500)
    await killed_at("pause", 500)
    await command("resume")
    await killed_at("resume", 500)
    await killed_at("weight", HALF)
    await killed_at("weight", 10_000)
    await killed_at("complete", 10_000)
    await recorded(harness, "passed every step", phase="Healthy", weight=10_000)
    assert weights(await harness.decisions(name)) == [0, 500, HALF, 10_000]
    await eventually(
        lambda: harness.state is not None and harness.state.stable == f"{harness.model}-v1.1",
        "the router's state follows",
    )
    for version, state in (("v1.0", "retired"), ("v1.1", "stable")):

        async def is_so(version: str = version, state: str = state) -> bool:
            return await harness.version_state(f"{harness.model}-{version}") == state

        await eventually(is_so, f"{version} is {state}")


@pytest.mark.verify
async def test_a_candidate_that_stalls_only_in_streams_is_taken_back(
    stack: Stack, harness: RolloutHarness, engine: CandidateEngine
) -> None:
    harness.rate = 0.0
    engine.stall_s = 2.5
    try:
        async with (
            RoutedUsers(stack.url("router"), harness.model, streaming=True),
            RoutedUsers(stack.url("router"), harness.model),
        ):
            await begin(harness)
            await recorded(harness, "stall", **ROLLED_BACK)
    finally:
        engine.stall_s = 0.0


@pytest.mark.verify
async def test_answers_of_35_s_on_both_arms_take_nobody_back(
    stack: Stack, harness: RolloutHarness, engine: CandidateEngine
) -> None:
    harness.rate = 0.0
    engine.delay_s = 35.0
    try:
        async with RoutedUsers(stack.url("router"), harness.model, rate=5.0):
            await begin(harness)
            await at_weight(harness)
            await slow_on_both(harness, timeout_s=180)
    finally:
        engine.delay_s = 0.0
