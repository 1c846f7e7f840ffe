"""The whole loop by SASL_SSL, ACLs and Redis with TLS: each service may what the command prints."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import yaml
from aiohttp import web

from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from shared.contracts.events.feedback import FeedbackSubmitted
from shared.contracts.events.versions import record_key
from shared.contracts.topics import VERSIONS, intake_topic, load_topics
from shared.kafka.log import LogUnavailable, read_to_end
from shared.kafka.producer import KafkaLog
from tests.support.aggregator_process import series_of, total
from tests.support.command import Ran, ratchet
from tests.support.rollout_harness import HOST
from tests.support.rollouts import version_record
from tests.support.secure_kafka import SecureKafka, allow
from tests.support.secure_stack import PREFIX, SERVICES, secure_stack, secure_variables
from tests.support.waiting import eventually

pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]

TENANT, OTHER = "default", "umbrella"
TENANTS = f"{TENANT},{OTHER}"
USERS = {f"{PREFIX}{name}" for name in (*SERVICES.values(), "inference", "cli")} | {
    f"{PREFIX}tenant-{TENANT}"
}
MODEL = "guarded"
STABLE, CANDIDATE = f"{MODEL}-v1.0", f"{MODEL}-v1.1"
STRATEGY = {
    "name": "half",
    "steps": [
        {"setWeight": 50},
        {"pause": {"duration": "1h"}},
        {"analysis": {}},
        {"setWeight": 100},
        {"pause": {"duration": "1s"}},
    ],
}
THUMBS = ("f0", "f1")
REFUSED_S = 2.0
SOON_S = 120.0
DENIED = re.compile(r"Principal = User:(\S+) is Denied operation = (\S+) .* on resource = (\S+)")
REDIS_REFUSALS = ("NOPERM", "WRONGPASS", "NOAUTH")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    """The broker with the topics, and with the ACLs that the command prints and no other."""
    with SecureKafka(tmp_path_factory.mktemp("broker"), USERS) as started:
        env = started.variables("admin") | {"RATCHET_TENANTS": TENANTS}
        assert (created := ratchet("topics", "apply", env=env)).status == 0, created.err
        rules = ratchet("kafka", "acls", "--json", env=env).json
        asyncio.run(allow(started.connection("admin"), rules))
        yield started


@pytest.fixture(scope="module")
def agent_port() -> int:
    return free_ports(["agent"])["agent"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("secured")


@pytest.fixture(scope="module")
def stack(run_dir: Path, broker: SecureKafka, agent_port: int) -> Iterator[Stack]:
    strategy = run_dir / "half.yaml"
    strategy.write_text(yaml.safe_dump(STRATEGY))
    rollout = {
        "RATCHET_ROLLOUT_AGENTS": f"http://{HOST}:{agent_port}",
        "RATCHET_ROLLOUT_STRATEGY": str(strategy),
        "RATCHET_ROLLOUT_AUTO_START": "false",
    }
    with secure_stack(run_dir, broker, tenants=TENANTS, further={"rollout": rollout}) as started:
        yield started


@pytest.fixture
async def agent(agent_port: int) -> AsyncIterator[None]:
    """An adapter agent that has both versions ready."""

    async def adapters(_: web.Request) -> web.Response:
        ready = {"state": "ready", "reason": "", "difference": 0.0}
        engine = {"ready": True, "generation": 1, "base_model": "base"}
        held = [{"version": version, **ready} for version in (STABLE, CANDIDATE)]
        return web.json_response({"engine": engine, "adapters": held})

    app = web.Application()
    app.router.add_get("/v1/adapters", adapters)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, HOST, agent_port).start()
    yield
    await runner.cleanup()


@asynccontextmanager
async def logged_in(broker: SecureKafka, user: str) -> AsyncIterator[KafkaLog]:
    log = KafkaLog(broker.connection(f"{PREFIX}{user}"), source="/ratchet/test")
    try:
        yield log
    finally:
        await log.stop()


class Operator:
    """`ratchet` as the command's own principal."""

    def __init__(self, stack: Stack, broker: SecureKafka) -> None:
        variables = secure_variables(stack.run_dir, broker, "cli")
        variables["RATCHET_REDIS_URL"] = f"rediss://{stack.address('redis')}/0"
        self._env = {**stack.environment(), **variables}

    async def run(self, *arguments: str) -> Ran:
        return await asyncio.to_thread(lambda: ratchet(*arguments, env=self._env))


async def chat(http: httpx.AsyncClient, stack: Stack, user: str) -> httpx.Response:
    return await http.post(
        f"{stack.url('router')}/v1/chat/completions",
        json={"model": MODEL, "messages": [{"role": "user", "content": "Where is my parcel?"}]},
        headers={"x-ratchet-user": user},
    )


async def register(log: KafkaLog, version: str) -> None:
    """Put a version's record on the log, as training does."""
    record = version_record(version, model=MODEL)
    await log.publish(VERSIONS, key=record_key(version), event=record, event_id=version)


async def vote(http: httpx.AsyncClient, stack: Stack) -> None:
    """A comparison of both versions, and what a person says of it."""
    question = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hello"}],
        "user_id": "u1",
    }
    url = f"{stack.url('feedback')}/v1/comparisons"
    opened: list[dict[str, Any]] = []

    async def tried() -> bool:
        answer = await http.post(url, json=question)
        if answer.status_code == 201:
            opened.append(answer.json())
        return bool(opened)

    await eventually(tried, "a comparison is opened", SOON_S)
    choice = {"choice": "left", "user_id": "u1"}
    voted = await http.post(f"{url}/{opened[0]['comparison_id']}/vote", json=choice)
    assert voted.json()["accepted"] is True, voted.text


async def roll_out(
    http: httpx.AsyncClient, stack: Stack, operator: Operator, training: KafkaLog
) -> None:
    """Register two versions as training does, and roll the second out until both answer."""
    await register(training, STABLE)

    async def stable() -> bool:
        answer = await chat(http, stack, "u1")
        return answer.headers.get("x-ratchet-version") == STABLE

    await eventually(stable, "the first version answers", SOON_S)
    await register(training, CANDIDATE)
    start = ("rollout", "start", CANDIDATE, "--model", MODEL, "--reason", "a test")

    async def started() -> bool:
        return (await operator.run(*start)).status == 0

    await eventually(started, "the rollout starts", SOON_S)

    async def both_arms() -> bool:
        answers = [await chat(http, stack, f"u{number}") for number in range(20)]
        return {one.headers["x-ratchet-version"] for one in answers} == {STABLE, CANDIDATE}

    await eventually(both_arms, "the weight reaches the router", SOON_S)


async def thumbs(http: httpx.AsyncClient, stack: Stack, product: KafkaLog) -> None:
    """Thumbs f0 by HTTP and f1 on the tenant's intake topic, each on an answer of its own."""
    first, second = [
        {
            "trace_id": (await chat(http, stack, "u1")).headers["x-ratchet-trace-id"],
            "type": "thumbs_up",
            "feedback_id": name,
            "user_id": "u1",
        }
        for name in THUMBS
    ]
    posted = await http.post(f"{stack.url('feedback')}/v1/feedback", json=first)
    assert posted.status_code == 202, posted.text
    await product.append(
        intake_topic(TENANT),
        key=second["trace_id"],
        value=orjson.dumps(second),
        headers=(("ce_type", FeedbackSubmitted.ce_type.encode()),),
    )


async def test_the_loop_runs_by_tls_and_each_service_by_its_own_principal(
    stack: Stack, broker: SecureKafka, agent: None
) -> None:
    operator = Operator(stack, broker)
    async with httpx.AsyncClient(timeout=60) as http:
        async with logged_in(broker, "training") as training:
            await roll_out(http, stack, operator, training)
        async with logged_in(broker, f"tenant-{TENANT}") as product:
            await thumbs(http, stack, product)
        await vote(http, stack)

        async def joined() -> bool:
            found = await series_of(stack.ports["aggregator"])
            ups = total(found.get("ratchet_feedback_total", {}), type="thumbs_up")
            return (ups, total(found.get("ratchet_votes_total", {}))) == (2, 1)

        await eventually(joined, "the aggregator counts two thumbs and a vote", SOON_S)

    async def shown() -> bool:
        found = [await operator.run("feedback", "show", name, "--json") for name in THUMBS]
        return all(one.status == 0 and MODEL in one.out for one in found)

    await eventually(shown, "both thumbs are found with their answers", SOON_S)
    status = (await operator.run("status", "--json")).json
    assert {name for name, seen in status["services"].items() if seen["ready"]} == set(SERVICES)
    assert (status["routing"][0]["weight"], status["routing_error"]) == (5_000, "")
    assert denied(broker, {f"{PREFIX}{name}" for name in (*SERVICES.values(), "cli")}) == set()
    assert not [
        (process, line)
        for process in SERVICES
        for line in stack.log(process).read_text().splitlines()
        if any(word in line for word in REDIS_REFUSALS)
    ]


def denied(broker: SecureKafka, users: set[str]) -> set[tuple[str, ...]]:
    """User, operation and resource of what the broker's authorizer denied to these users."""
    said = (broker.directory / "kafka.log").read_text()
    return {found.groups() for found in DENIED.finditer(said) if found[1] in users}


async def test_a_tenants_principal_reaches_no_other_topic(broker: SecureKafka) -> None:
    topics = [topic.name for one in load_topics() for topic in one.for_tenants((TENANT, OTHER))]
    own = intake_topic(TENANT)
    async with logged_in(broker, f"tenant-{TENANT}") as log:
        await log.append(own, key="k", value=b"{}")

        for topic in topics:
            with pytest.raises(LogUnavailable):
                await read_to_end(log, topic, timeout_s=REFUSED_S)
            if topic != own:
                with pytest.raises(LogUnavailable):
                    await log.append(topic, key="k", value=b"v", timeout_s=REFUSED_S)
