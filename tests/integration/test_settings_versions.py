"""Versions of prompts and settings on the real stack, before an engine that is no vLLM."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import openai
import pytest
from aiohttp import web

from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from tests.support.command import ratchet
from tests.support.rollout_harness import HOST, RolloutHarness
from tests.support.rollout_stack import rollout_and_router
from tests.support.router_process import ServiceProcess
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(600)  # the stack starts within the first test's time

STRATEGY = {
    "name": "slow",
    "steps": [
        {"setWeight": 20, "errorLimit": 0.05},
        {"pause": {"duration": "1h"}},
        {"analysis": {}},
        {"setWeight": 100},
        {"pause": {"duration": "1s"}},
    ],
}
BASE = "qwen"
HARMFUL = "Think of a number and never stop."


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return free_ports(["agent", "engine"])


@pytest.fixture(scope="module")
def stack(ports: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    run_dir = tmp_path_factory.mktemp("settings")
    with rollout_and_router(run_dir, STRATEGY, ports) as started:
        yield started


@pytest.fixture
async def engine(ports: dict[str, int]) -> AsyncIterator[None]:
    """An OpenAI-compatible engine with one model and no health path.

    Every second of its answers to a system prompt that it cannot stand fails, the first one not: a
    candidate that fails at once several times in a row gets no request that a client could see.
    """
    fails = itertools.cycle((False, True))

    async def answer(request: web.Request) -> web.Response:
        asked = await request.json()
        assert asked["model"] == BASE
        if HARMFUL in asked["messages"][0]["content"] and next(fails):
            return web.json_response({"error": {"message": "injected"}}, status=500)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "Here you are."},
            "finish_reason": "stop",
        }
        body = {"id": "1", "object": "chat.completion", "created": 1, "model": asked["model"]}
        return web.json_response({**body, "choices": [choice]})

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": BASE}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, HOST, ports["engine"]).start()
    yield
    await runner.cleanup()


@pytest.fixture
async def untrained(
    stack: Stack, ports: dict[str, int], engine: None, unique: str, tmp_path: Path
) -> AsyncIterator[RolloutHarness]:
    """A model of which nothing was trained: router, rollout and a real agent before the engine."""
    env = {
        "RATCHET_INFERENCE_PORT": str(ports["agent"]),
        "RATCHET_INFERENCE_ENGINE_EXTERNAL": "true",
        "RATCHET_INFERENCE_ENGINE_URL": f"http://{HOST}:{ports['engine']}",
        "RATCHET_INFERENCE_MODELS": unique,
        "RATCHET_KAFKA_BOOTSTRAP": stack.address("kafka"),
        "RATCHET_DATA_DIR": str(tmp_path / "agent"),
    }
    log = tmp_path / "agent.log"
    agent = ServiceProcess(env, ports["agent"], log, module="services.inference")
    made = RolloutHarness(
        unique,
        kafka=stack.address("kafka"),
        redis_url=f"redis://{stack.address('redis')}/0",
        rollout_url=stack.url("rollout"),
        routers=0,
        rate=0,
    )
    await made.open()
    await agent.start()
    await agent.ready()
    yield made
    await made.close()
    await agent.end()


async def test_a_harmful_system_prompt_is_taken_back_before_any_training(
    stack: Stack, untrained: RolloutHarness, tmp_path: Path
) -> None:
    model, env = untrained.model, {"RATCHET_ROLLOUT_URL": stack.url("rollout")}
    first, harmful = f"{model}-base", f"{model}-chatty"
    system = tmp_path / "system.txt"
    system.write_text(HARMFUL)

    async def register(version: str, *options: str) -> None:
        given = ("--model", model, *options, "--reason", "test")
        ran = await asyncio.to_thread(ratchet, "versions", "register", version, *given, env=env)
        assert ran.status == 0, ran.err

    await register(first, "--base", BASE)
    await eventually(lambda: untrained.state is not None, "the base becomes stable by itself")
    await register(harmful, "--system-file", str(system), "--temperature", "0.2")
    begun = await untrained.http.post(
        "/v1/rollouts", json={"model": model, "candidate": harmful, "reason": "test"}
    )
    assert begun.status_code == 201, begun.text
    versions: list[str] = []
    url = f"{stack.url('router')}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="-", max_retries=0) as client:

        async def taken_back() -> bool:
            answer = await client.chat.completions.create(
                model=model,
                user=f"user-{len(versions) % 97}",
                messages=[{"role": "user", "content": "Where is my parcel?"}],
            )
            versions.append(answer.model)
            return await untrained.version_state(harmful) == "rejected"

        await eventually(taken_back, "the harmful prompt is taken back", 120)
    decided = (await untrained.decisions(begun.json()["rollout_id"]))[-1]
    assert decided["kind"] == "rollback", decided["reason"]
    assert set(versions) == {first, harmful}
