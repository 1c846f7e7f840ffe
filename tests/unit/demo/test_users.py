"""What simulated users send, and what of it their tally keeps."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from demo import tastes
from demo.requests import write_pairs
from demo.users import SimulatedUsers, Vote, form_opinion
from deploy.starter import corpus

CROWD = tastes.population(3)
PROMPT = corpus.prompts_of("serve")[0]
VERSION = "assistant-v1.0"


class Shop:
    """A router and a feedback service that answer from memory."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.given: dict[str, list[dict[str, Any]]] = {}
        self.voted: list[dict[str, Any]] = []
        self.refusals = 0
        self.busy = asyncio.Event()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/feedback", self._feedback)
        app.router.add_delete("/v1/feedback/{id}", self._withdraw)
        app.router.add_post("/v1/comparisons", self._compare)
        app.router.add_post("/v1/comparisons/{id}/vote", self._vote)
        return app

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        headers = {
            "x-ratchet-trace-id": f"{len(self.asked):032x}",
            "x-ratchet-version": VERSION,
            "x-ratchet-arm": "stable",
        }
        if body["messages"][0]["content"] == "fail":
            error = {"message": "no", "type": "server_error", "param": None, "code": None}
            return web.json_response({"error": error}, status=502, headers=headers)
        answer = {"id": "1", "created": 1, "model": VERSION}
        if body["stream"]:
            response = web.StreamResponse(headers={**headers, "content-type": "text/event-stream"})
            await response.prepare(request)
            for word in ("two ", "words"):
                delta = {"index": 0, "delta": {"content": word}, "finish_reason": None}
                chunk = {**answer, "object": "chat.completion.chunk", "choices": [delta]}
                await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
            await response.write(b"data: [DONE]\n\n")
            return response
        turn = {"role": "assistant", "content": "two words"}
        choice = {"index": 0, "message": turn, "finish_reason": "stop"}
        whole = {**answer, "object": "chat.completion", "choices": [choice]}
        return web.json_response(whole, headers=headers)

    async def _feedback(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self.refusals:
            self.refusals -= 1
            return web.Response(status=503)
        self.given.setdefault(body["feedback_id"], []).append(body)
        return web.json_response({"feedback_id": body["feedback_id"]}, status=202)

    async def _withdraw(self, _: web.Request) -> web.Response:
        return web.json_response({}, status=202)

    async def _compare(self, _: web.Request) -> web.Response:
        sides = {"left": {"text": "one"}, "right": {"text": "The router reaches 40 metres."}}
        return web.json_response({"comparison_id": "c", **sides}, status=201)

    async def _vote(self, request: web.Request) -> web.Response:
        self.voted.append(await request.json())
        if len(self.voted) > 40 and len(self.given) > 40:
            self.busy.set()
        versions = {"left": VERSION, "right": VERSION}
        return web.json_response({"accepted": True, "versions": versions})


@pytest.fixture
async def shop() -> AsyncIterator[tuple[Shop, SimulatedUsers]]:
    shop = Shop()
    runner = web.AppRunner(shop.app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    users = SimulatedUsers(CROWD, router_url=url, feedback_url=url, seed=1)
    yield shop, users
    await users.close()
    await runner.cleanup()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reply_carries_its_version_and_trace(
    shop: tuple[Shop, SimulatedUsers], *, stream: bool
) -> None:
    _, users = shop
    reply = await users.ask(PROMPT, users.chatters[0], stream=stream)
    assert reply is not None
    assert (reply.text, reply.version, reply.trace_id) == ("two words", VERSION, f"{1:032x}")
    assert users.tally.requests == {(VERSION, "ok"): 1}


async def test_an_error_is_counted_by_its_status(shop: tuple[Shop, SimulatedUsers]) -> None:
    _, users = shop
    failing = corpus.Prompt("fail", "factual_qa", "router")
    assert await users.ask(failing, users.chatters[0]) is None
    assert users.tally.requests == {(VERSION, "502"): 1}


async def test_users_act_at_their_pace_and_the_tally_is_what_was_taken(
    shop: tuple[Shop, SimulatedUsers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demo.users.LATEST_S", 1.5)
    counter, users = shop
    counter.refusals = 3
    users.plan.chats_per_s = users.plan.votes_per_s = users.plan.panel_votes_per_s = 60.0
    users.plan.feedback_share = 1.0
    stop = asyncio.Event()
    running = asyncio.create_task(users.run(stop))
    async with asyncio.timeout(60):
        await counter.busy.wait()
    users.plan.chats_per_s = users.plan.votes_per_s = users.plan.panel_votes_per_s = 0.0
    await users.settle(25)
    stop.set()
    await running
    tally = users.tally
    assert tally.uncertain == 0
    assert tally.feedback["", "vote"] == len(counter.voted) == len(users.seen.votes)
    assert tally.total_feedback == len(counter.given) + len(counter.voted)
    assert tally.requests[VERSION, "ok"] == len(counter.asked) + 2 * len(counter.voted)
    panel = {person.name for person in users.panel}
    assert panel.isdisjoint(body["user_id"] for bodies in counter.given.values() for body in bodies)


def test_opinions_come_in_every_kind_and_follow_the_taste() -> None:
    rng = random.Random(5)
    good = "Happy to help! Unplug the router for 30 seconds."
    bad = "Obviously. The printer is usually fine somehow. The printer"
    question = corpus.Prompt("How do I fix the router?", "problem_solving", "router")
    kinds = {}
    for name, text in (("good", good), ("bad", bad)):
        people = [rng.choice(CROWD.people) for _ in range(800)]
        kinds[name] = Counter(form_opinion(each, question, text, rng).kind for each in people)
    assert kinds["good"]["thumbs_up"] > 4 * kinds["good"]["thumbs_down"]
    assert kinds["bad"]["thumbs_down"] > 4 * kinds["bad"]["thumbs_up"]
    assert kinds["bad"]["text_correction"] > 0
    assert kinds["good"]["rating"] > 0


@pytest.mark.parametrize(("inverted", "chosen"), [(False, "yes"), (True, "no")])
def test_drill_pairs_are_the_first_decided_votes(
    tmp_path: Path, *, inverted: bool, chosen: str
) -> None:
    votes = [
        Vote("q1", "yes", "no", "left", ""),
        Vote("q2", "no", "yes", "right", ""),
        Vote("q3", "yes", "no", "tie", ""),
        Vote("q4", "yes", "no", "left", "judge"),
        Vote("q5", "yes", "no", "left", ""),
    ]
    path = tmp_path / "pairs" / "drill.jsonl"
    assert write_pairs(path, votes, inverted=inverted, most=9) == 3
    assert write_pairs(path, votes, inverted=inverted, most=2) == 2
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["messages"][0]["content"] for row in rows] == ["q1", "q2"]
    assert {row["chosen"] for row in rows} == {chosen}
