"""Feedback service and router together: comparisons ask the versions that they name, and choose of answers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from aiohttp import web

from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from shared.contracts.events.interactions import InteractionRecorded, Purpose
from shared.contracts.events.versions import Lifecycle
from shared.contracts.events.votes import INFORMATIVE, PAIR_LABEL, VoteCast
from shared.contracts.topics import FEEDBACK, INTERACTIONS
from shared.kafka.envelope import decode, models_by_type
from shared.kafka.log import EventLog, read_to_end
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from tests.support.feedback import event_of
from tests.support.rollouts import decide, register
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(150)

HOST = "127.0.0.1"
UNLOADED = "v0.9"
"""The end of a version's name that the engine does not hold."""
TALKATIVE = "v1.1"
"""The end of a version's name that never ends by itself."""
CHOSEN = "chosen-pairs"
"""The model that the voting page asks, twice of each version."""
SCORES = {"v1.0 says odd": 0.1, "v1.0 says even": 5.0, "v1.2 says odd": -5.0, "v1.2 says even": 0.0}
"""Of its answers: a vote tells most between the first and the last."""


@pytest.fixture(scope="module")
def engine_port() -> int:
    return free_ports(["engine"])["engine"]


@pytest.fixture(scope="module")
def stack(engine_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    run_dir = tmp_path_factory.mktemp("compared")
    router = {
        "RATCHET_ROUTER_ENGINES": f"http://{HOST}:{engine_port}",
        "RATCHET_DATA_DIR": str(run_dir / "router-data"),
    }
    plan = {"model": CHOSEN, "prompts": [f"Where is parcel {number}?" for number in range(12)]}
    (run_dir / "plan.yaml").write_text(json.dumps(plan))
    feedback = {
        "RATCHET_FEEDBACK_VOTING_PLAN_FILE": str(run_dir / "plan.yaml"),
        "RATCHET_FEEDBACK_VOTING_CANDIDATES": "2",
        "RATCHET_FEEDBACK_INFERENCE_URL": f"http://{HOST}:{engine_port}",
    }
    with Stack(
        run_dir,
        services=["router", "feedback"],
        processes={"router": {"env": router}, "feedback": {"env": feedback}},
        ports="free",
        say=lambda _: None,
    ) as started:
        yield started


@pytest.fixture
async def asked(engine_port: int) -> AsyncIterator[list[dict[str, Any]]]:
    """What the engine was asked; it answers every version with that version's name."""
    bodies: list[dict[str, Any]] = []

    async def chat(request: web.Request) -> web.Response:
        body = await request.json()
        bodies.append(body)
        if body["model"].endswith(UNLOADED):
            error = {"message": f"The model `{body['model']}` does not exist.", "code": 404}
            return web.json_response({"error": error}, status=404)
        said = "hello"
        if body["model"].startswith(CHOSEN):
            said = "odd" if body["seed"] % 2 else "even"
        message = {"role": "assistant", "content": f"{body['model']} says {said}"}
        reason = "length" if body["model"].endswith(TALKATIVE) else "stop"
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return web.json_response(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [choice],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
        )

    async def score(request: web.Request) -> web.Response:
        items = (await request.json())["items"]
        scores = [
            score
            for item in items
            for end, score in SCORES.items()
            if item["completion"].endswith(end)
        ]
        return web.json_response({"reward_model": f"{CHOSEN}-reward-v1", "scores": scores})

    async def well(_: web.Request) -> web.Response:
        return web.json_response({"data": []})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_post("/v1/score", score)
    app.router.add_get("/{path:.*}", well)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, HOST, engine_port).start()
    yield bodies
    await runner.cleanup()


@pytest.fixture
async def log(stack: Stack) -> AsyncIterator[EventLog]:
    real = KafkaLog(KafkaConnection(stack.address("kafka")), source="/ratchet/test")
    await real.start()
    yield real
    await real.stop()


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stack.url("feedback"), timeout=60) as http:
        yield http


async def opened(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    """A comparison, as soon as both services have heard of the model."""
    last: httpx.Response | None = None

    async def try_it() -> bool:
        nonlocal last
        last = await client.post("/v1/comparisons", json=body)
        return last.status_code == 201

    await eventually(try_it, "a comparison is opened")
    assert last is not None
    return last.json()


def question(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], "user_id": "u1"}


async def test_a_vote_names_the_versions_that_the_router_recorded(
    client: httpx.AsyncClient, log: EventLog, asked: list[dict[str, Any]], unique: str
) -> None:
    stable, candidate = f"{unique}-v1.0", f"{unique}-{TALKATIVE}"
    await register(log, stable, Lifecycle.stable, model=unique, day=0)
    await register(log, candidate, Lifecycle.canary, model=unique, day=1)
    await decide(log, unique, stable=stable, candidate=candidate)
    comparison = await opened(client, question(unique))
    path = f"/v1/comparisons/{comparison['comparison_id']}/vote"
    voted = (await client.post(path, json={"choice": "left", "user_id": "u1"})).json()
    assert voted["accepted"] is True
    assert set(voted["versions"].values()) == {stable, candidate}
    for side in ("left", "right"):
        assert comparison[side]["text"] == f"{voted['versions'][side]} says hello"
    assert len({body["seed"] for body in asked if body["model"] in (stable, candidate)}) >= 2

    records = await read_to_end(log, FEEDBACK, timeout_s=60)
    (vote,) = [event_of(one) for one in records if one.key == comparison["comparison_id"]]
    traces = {side.trace_id: side.version for side in (vote.left, vote.right)}
    assert all(side.cut == (side.version == candidate) for side in (vote.left, vote.right))

    async def recorded() -> dict[str, InteractionRecorded]:
        models = models_by_type(InteractionRecorded)
        found: dict[str, InteractionRecorded] = {}
        for record in await read_to_end(log, INTERACTIONS, timeout_s=60):
            event = decode(record.headers, record.value, models)
            if isinstance(event, InteractionRecorded) and event.trace_id in traces:
                found[event.trace_id] = event
        return found if len(found) == len(traces) else {}

    interactions = await eventually(recorded, "both interactions are recorded")
    for trace_id, version in traces.items():
        assert interactions[trace_id].version == version
        assert interactions[trace_id].purpose is Purpose.comparison
        assert interactions[trace_id].rollout == ""
        assert interactions[trace_id].cut == (version == candidate)


async def test_an_older_version_that_no_engine_holds_is_stood_in_for(
    client: httpx.AsyncClient, log: EventLog, asked: list[dict[str, Any]], unique: str
) -> None:
    stable, retired = f"{unique}-v1.0", f"{unique}-{UNLOADED}"
    await register(log, retired, Lifecycle.retired, model=unique, day=0)
    await register(log, stable, Lifecycle.stable, model=unique, day=1)
    await decide(log, unique, stable=stable)
    comparison = await opened(client, question(unique))
    texts = {comparison[side]["text"] for side in ("left", "right")}
    assert texts == {f"{stable} says hello"}
    assert retired in {body["model"] for body in asked}


async def test_a_version_that_nobody_knows_is_a_404(
    client: httpx.AsyncClient, log: EventLog, asked: list[dict[str, Any]], unique: str
) -> None:
    stable = f"{unique}-v1.0"
    await register(log, stable, Lifecycle.stable, model=unique, day=0)
    await decide(log, unique, stable=stable)
    await opened(client, question(unique))
    body = {**question(unique), "versions": [stable, f"{unique}-v7"]}
    answer = await client.post("/v1/comparisons", json=body)
    assert answer.status_code == 404
    assert f"{unique}-v7" in answer.json()["detail"]


async def test_the_page_shows_the_pair_of_which_a_vote_tells_most(
    client: httpx.AsyncClient, log: EventLog, asked: list[dict[str, Any]]
) -> None:
    stable, candidate = f"{CHOSEN}-v1.0", f"{CHOSEN}-v1.2"
    await register(log, stable, Lifecycle.stable, model=CHOSEN, day=0)
    await register(log, candidate, Lifecycle.canary, model=CHOSEN, day=1)
    await decide(log, CHOSEN, stable=stable, candidate=candidate)
    invited = (await client.post("/v1/invites", json={"user_id": "rosa"})).json()
    page = await client.get(invited["path"], follow_redirects=True)
    token = re.search(r'csrf-token" content="([^"]+)"', page.text)
    assert token
    client.headers["x-csrf-token"] = token[1]

    async def voted() -> VoteCast | None:
        shown = await client.post("/vote/api/next", json={})
        if shown.status_code != 200:
            return None  # the services have not heard of the model yet
        comparison = shown.json()["comparison_id"]
        vote = {"choice": "left"}
        path = f"/vote/api/comparisons/{comparison}/vote"
        assert (await client.post(path, json=vote)).status_code == 200
        records = await read_to_end(log, FEEDBACK, timeout_s=60)
        (event,) = [event_of(one) for one in records if one.key == comparison]
        return event if PAIR_LABEL in event.context.labels else None

    # One comparison of four is on any two answers.
    vote = await eventually(voted, "a vote on a chosen pair is stored")
    assert vote is not None
    texts = {vote.left.completion, vote.right.completion}
    assert texts == {f"{stable} says odd", f"{candidate} says even"}
    assert vote.context.labels[PAIR_LABEL] == INFORMATIVE
    answers = [
        body
        for body in asked
        if body["messages"] == [{"role": "user", "content": vote.messages[-1].content}]
    ]
    assert sorted(body["model"] for body in answers) == [stable, stable, candidate, candidate]


async def test_without_a_router_comparisons_fail_and_feedback_goes_on(
    client: httpx.AsyncClient, log: EventLog, stack: Stack, asked: list[dict[str, Any]], unique: str
) -> None:
    stable = f"{unique}-v1.0"
    await register(log, stable, Lifecycle.stable, model=unique, day=0)
    await decide(log, unique, stable=stable)
    await opened(client, question(unique))
    await asyncio.to_thread(stack.stop, "router")
    try:
        answer = await client.post("/v1/comparisons", json=question(unique))
        assert answer.status_code == 503
        assert answer.json()["code"] == "router_failed"
        body = {"trace_id": unique, "type": "thumbs_up"}
        assert (await client.post("/v1/feedback", json=body)).status_code == 202
    finally:
        await asyncio.to_thread(stack.start, "router")
