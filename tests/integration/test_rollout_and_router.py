"""Rollout service and router together: what one exports is what the other judges by."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime

import httpx
import pytest
import yaml
from aiohttp import web

from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from tests.support.rollout_harness import HOST, RolloutHarness, StandInAgent
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
FAILING = 0.3
RATE = 30.0


@dataclass
class TimedAnswer:
    """One answer as a client saw it."""

    at: float
    version: str
    arm: str
    status: int


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return free_ports(["agent", "engine"])


@pytest.fixture(scope="module")
def stack(ports: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    run_dir = tmp_path_factory.mktemp("pair")
    strategy = run_dir / "slow.yaml"
    strategy.write_text(yaml.safe_dump(STRATEGY))
    rollout = {
        "RATCHET_ROLLOUT_AGENTS": f"http://{HOST}:{ports['agent']}",
        "RATCHET_ROLLOUT_STRATEGY": str(strategy),
        "RATCHET_ROLLOUT_AUTO_START": "false",
        "RATCHET_DATA_DIR": str(run_dir / "rollout-data"),
    }
    router = {
        "RATCHET_ROUTER_ENGINES": f"http://{HOST}:{ports['engine']}",
        "RATCHET_DATA_DIR": str(run_dir / "router-data"),
    }
    with Stack(
        run_dir,
        services=["rollout", "router"],
        processes={"rollout": {"env": rollout}, "router": {"env": router}},
        ports="free",
        scrape_interval="1s",
        say=lambda _: None,
    ) as started:
        yield started


@pytest.fixture
async def engine(ports: dict[str, int]) -> AsyncIterator[None]:
    """An engine whose answers for v1.1 fail as often as the demo's fault proxy makes them."""
    generator = random.Random(4)

    async def answer(request: web.Request) -> web.Response:
        model = (await request.json())["model"]
        if model.endswith("v1.1") and generator.random() < FAILING:
            return web.json_response({"error": {"message": "injected"}}, status=500)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "Here you are."},
            "finish_reason": "stop",
        }
        body = {"id": "1", "object": "chat.completion", "created": 1, "model": model}
        return web.json_response({**body, "choices": [choice]})

    async def well(_: web.Request) -> web.Response:
        return web.json_response({"data": []})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    app.router.add_get("/{path:.*}", well)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, HOST, ports["engine"]).start()
    yield
    await runner.cleanup()


@pytest.fixture
async def harness(
    stack: Stack, ports: dict[str, int], engine: None, unique: str
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
    agent.harness = made
    await made.register(f"{unique}-v1.0")
    await eventually(lambda: made.state is not None, "v1.0 becomes stable by itself", 20)
    await made.register(f"{unique}-v1.1")
    yield made
    await agent.close()
    await made.close()


class Users:
    """Users who ask the router, so many a second, until told to stop."""

    def __init__(self, url: str, model: str) -> None:
        self.answers: list[TimedAnswer] = []
        self._http = httpx.AsyncClient(base_url=url, timeout=10)
        self._model = model
        self._running: set[asyncio.Task[None]] = set()
        self._driving = asyncio.create_task(self._drive())

    async def stop(self) -> None:
        self._driving.cancel()
        await asyncio.gather(self._driving, *self._running, return_exceptions=True)
        await self._http.aclose()

    async def _drive(self) -> None:
        user = 0
        while True:
            user += 1
            task = asyncio.create_task(self._ask(f"user-{user % 997}"))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            await asyncio.sleep(1 / RATE)

    async def _ask(self, user: str) -> None:
        body = {
            "model": self._model,
            "user": user,
            "messages": [{"role": "user", "content": "Where is my parcel?"}],
        }
        answer = await self._http.post("/v1/chat/completions", json=body)
        headers = answer.headers
        self.answers.append(
            TimedAnswer(
                time.time(),
                headers.get("x-ratchet-version", ""),
                headers.get("x-ratchet-arm", ""),
                answer.status_code,
            )
        )


async def test_a_failing_version_is_taken_back_and_no_user_saw_a_failure(
    stack: Stack, harness: RolloutHarness
) -> None:
    users = Users(stack.url("router"), harness.model)
    try:
        await eventually(
            lambda: any(one.status == 200 for one in users.answers), "stable answers", 20
        )
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
            20,
        )
    finally:
        await users.stop()
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


def _seconds(text: str) -> float:

    return datetime.fromisoformat(text).timestamp()
