"""Rollout service and router together: what one exports is what the other judges by."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Any

import aiohttp
import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from services.inference.admission import BatchAdmission
from services.inference.batch import PRIORITY, BatchTimeouts, BatchWorker
from services.inference.engine import EngineClient
from services.inference.generation_spans import GenerationSpans
from services.inference.metrics import InferenceMetrics
from shared.clock import SystemClock
from shared.contracts.events.generations import GenerationRequested
from shared.contracts.topics import GENERATION_REQUESTS
from shared.kafka.consumer import ConsumerLoop
from shared.kafka.deadletters import DeadLetters
from shared.kafka.envelope import models_by_type
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.observability.trace_export import spans_of
from tests.support.candidate_engine import CandidateEngine
from tests.support.rollout_harness import RolloutHarness, StandInAgent
from tests.support.rollout_stack import rollout_and_router
from tests.support.routed_users import RoutedUsers
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(600)  # the stack starts within the first test's time

STRATEGY = {
    "name": "slow",
    "steps": [
        {"setWeight": 5, "errorLimit": 0.05},
        {"pause": {"duration": "1h"}},
        {"analysis": {}},
        {"setWeight": 100},
        {"pause": {"duration": "1s"}},
    ],
}
SHADOW = {
    **STRATEGY,
    "name": "shadowed",
    "steps": [{"shadow": {"share": 50, "minimum": 40, "errorLimit": 0.05}}, *STRATEGY["steps"]],
}
FAILING = 0.3
RATE = 30.0


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return free_ports(["agent", "engine"])


@pytest.fixture(scope="module")
def stack(ports: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    run_dir = tmp_path_factory.mktemp("pair")
    with rollout_and_router(run_dir, STRATEGY, ports) as started:
        yield started


@pytest.fixture
async def engine(ports: dict[str, int]) -> AsyncIterator[CandidateEngine]:
    made = CandidateEngine(ports["engine"], failing=FAILING)
    await made.open()
    yield made
    await made.close()


class ServedAdapters:
    """An agent whose versions all serve."""

    async def wait_ready(self, version: str, timeout_s: float) -> bool:
        return bool(version) and timeout_s > 0

    def is_elsewhere(self, version: str) -> bool:
        return not version


@pytest.fixture
async def batch_worker(stack: Stack, engine: CandidateEngine, unique: str) -> AsyncIterator[None]:
    """The real batch worker, on the real log, beside the stub engine."""
    stop, clock = asyncio.Event(), SystemClock()
    registry = CollectorRegistry()
    metrics = InferenceMetrics(registry)
    connection = KafkaConnection(stack.address("kafka"))
    log = KafkaLog(connection, source="/ratchet/inference")
    await log.start()
    async with aiohttp.ClientSession() as session:
        client = EngineClient(session, engine.url)
        admission = BatchAdmission(4, client.load_figures, clock, metrics)
        worker = BatchWorker(
            client=client,
            adapters=ServedAdapters(),
            settings=lambda _: None,
            event_log=log,
            admission=admission,
            policy=BatchTimeouts(timeout_s=10, wait_s=10),
            redact=lambda text: text,
            clock=clock,
            metrics=metrics,
            spans=GenerationSpans(spans_of("inference"), clock),
            stop=stop,
        )
        consumer = ConsumerLoop(
            connection,
            group=unique,
            handler=worker.handle,
            models=models_by_type(GenerationRequested),
            dead_letters=DeadLetters(
                log, service="inference", redact=lambda text: text, metrics=registry
            ),
            topics=[GENERATION_REQUESTS],
            concurrency=4,
        )
        running = [
            asyncio.create_task(admission.run(stop)),
            asyncio.create_task(consumer.run(stop)),
        ]
        yield
        stop.set()
        running[0].cancel()
        await asyncio.gather(*running, return_exceptions=True)
    await log.stop()


@pytest.fixture
async def harness(
    stack: Stack, ports: dict[str, int], engine: CandidateEngine, unique: str
) -> AsyncIterator[RolloutHarness]:
    """Registers versions and follows the routing view; its stand-in routers are not used."""
    made = RolloutHarness(
        unique,
        kafka=stack.address("kafka"),
        redis_url=f"redis://{stack.address('redis')}/0",
        rollout_url=stack.url("rollout"),
        routers=0,
        rate=0,
    )
    agent = StandInAgent()
    await made.open()
    await agent.open(ports["agent"])
    agent.harnesses.append(made)
    await made.register(f"{unique}-v1.0")
    await eventually(lambda: made.state is not None, "v1.0 becomes stable by itself")
    await made.register(f"{unique}-v1.1")
    yield made
    await agent.close()
    await made.close()


async def test_a_failing_version_is_taken_back_and_no_user_saw_a_failure(
    stack: Stack, harness: RolloutHarness
) -> None:
    async with RoutedUsers(stack.url("router"), harness.model, rate=RATE) as users:
        await eventually(lambda: any(one.status == 200 for one in users.answers), "stable answers")
        users.answers.clear()
        candidate = f"{harness.model}-v1.1"
        begun = await harness.http.post(
            "/v1/rollouts",
            json={
                "model": harness.model,
                "candidate": candidate,
                "on_behalf_of": "sre",
                "reason": "test",
            },
        )
        assert begun.status_code == 201, begun.text
        name = begun.json()["rollout_id"]

        async def over() -> bool:
            return (await harness.current())["phase"] == "Degraded"

        await eventually(over, "rolled back", 90)
        done = await harness.current()
        decided = (await harness.decisions(name))[-1]
        decided_at = _seconds(decided["at"])
        await eventually(
            lambda: sum(one.at > decided_at + 1 for one in users.answers) >= 2 * RATE,
            "two seconds' worth of answers from after the decision",
        )
    assert decided["kind"] == "rollback"
    served = [one for one in users.answers if one.arm in ("candidate", "fallback")]
    first = min(one.at for one in served)
    assert decided_at - first < 60
    assert not [one for one in served if one.at > decided_at + 1]
    assert {one.status for one in users.answers} == {200}
    assert 0 < done["requests"]["candidate"] <= len(served)
    assert 0 < done["failures"]["candidate"] <= sum(one.arm == "fallback" for one in served)
    assert done["failures"]["stable"] == 0
    assert done["requests"]["stable"] > 10 * done["requests"]["candidate"] / 2
    assert done["findings"]
    text = (await harness.http.get("/metrics")).text
    assert (
        f'ratchet_rollout_phase{{model="{harness.model}",phase="Degraded",rollout="{name}"}} 1.0'
        in text
    )


async def start_shadow(harness: RolloutHarness) -> str:
    """A rollout whose first step is a shadow; returns its id."""
    begun = await harness.http.post(
        "/v1/rollouts",
        json={
            "model": harness.model,
            "candidate": f"{harness.model}-v1.1",
            "strategy": SHADOW,
            "reason": "test",
        },
    )
    assert begun.status_code == 201, begun.text
    return begun.json()["rollout_id"]


async def arms_of_router(stack: Stack, rollout: str) -> dict[str, float]:
    """Attempts that the router counted in a rollout, by arm."""
    async with httpx.AsyncClient(base_url=stack.url("router")) as http:
        text = (await http.get("/metrics")).text
    found: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            counts = sample.name == "ratchet_router_requests_total"
            if counts and sample.labels["rollout"] == rollout:
                found[sample.labels["arm"]] += sample.value
    return found


@pytest.mark.parametrize("failing", [0.0, 0.6], ids=["a good candidate", "a failing one"])
async def test_a_candidate_answers_unseen_before_it_has_a_user(
    stack: Stack,
    harness: RolloutHarness,
    engine: CandidateEngine,
    batch_worker: None,
    failing: float,
) -> None:
    engine.failing = failing
    async with RoutedUsers(stack.url("router"), harness.model, rate=RATE) as users:
        await eventually(lambda: users.answers, "the router answers")
        name = await start_shadow(harness)

        async def shadow_over() -> bool:
            now = await harness.current()
            return now["weight"] > 0 or now["phase"] == "Degraded"

        await eventually(shadow_over, "the shadow step ended", 90)
        done = await harness.current()
        kinds = [one["kind"] for one in await harness.decisions(name) if one["kind"] != "hold"]
    attempts = await arms_of_router(stack, name)
    answers = done["shadow"]["answers"]
    assert {one.status for one in users.answers} == {200}
    if failing:
        assert kinds == ["start", "weight", "rollback"]
        assert "shadow answers failed" in done["reason"]
        assert attempts.keys() <= {"stable"} or attempts["candidate"] == 0
        assert not [one for one in users.answers if one.arm == "candidate"]
    else:
        assert kinds == ["start", "weight", "weight"]
        assert (answers["failed"], done["weight"]) == (0, 500)
        assert answers["answered"] >= 40
        assert answers["differences"]["similarity"] == 1.0
    unseen = engine.priorities.count(PRIORITY)
    assert unseen >= answers["answered"] + answers["failed"]
    # The router counted none of them: what it counts for the candidate are its users' requests.
    assert engine.priorities.count(0) == attempts.get("candidate", 0)


async def test_settings_are_evaluated_on_what_users_asked(
    stack: Stack, harness: RolloutHarness, batch_worker: None
) -> None:
    polite = f"{harness.model}-polite"
    body = {"version": polite, "model": harness.model, "reason": "answers are rude"}
    settings = {"system": "Be polite.", "defaults": {"temperature": 0.2}}
    made = await harness.http.post("/v1/versions", json={**body, "settings": settings})
    assert made.status_code == 201, made.text
    async with RoutedUsers(stack.url("router"), harness.model, rate=RATE) as users:
        await eventually(lambda: len(users.answers) >= 20, "users have asked")
        path = f"/v1/versions/{polite}"

        async def begun() -> bool:
            asked = {"prompts": 10, "reason": "before its first user"}
            answer = await harness.http.post(f"{path}/evaluation", json=asked)
            return answer.status_code == 202

        await eventually(begun, "enough of it is recorded")

    async def found() -> dict[str, Any]:
        return (await harness.http.get(path)).json()["evaluation"]

    evaluation = await eventually(found, "the evaluation is on record")
    assert (evaluation["against"], evaluation["pairs"]) == (f"{harness.model}-v1.0", 10)
    assert evaluation["gate"]["passed"], evaluation["gate"]


def _seconds(text: str) -> float:

    return datetime.fromisoformat(text).timestamp()
