"""The moderation endpoint: whole answers and streams, and what happens while it says nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry

from benchmarks.stub_engine import TEXT
from services.router.__main__ import client_session
from services.router.filter_rules import FILTERED, FilterFindings, FilterRule, FilterRules
from services.router.moderation_endpoint import (
    PIECE,
    UNAVAILABLE,
    ModerationEndpoint,
    ModerationPolicy,
    flagged_categories,
)
from services.router.moderation_windows import CONTEXT, WINDOW, ModerationWindows
from shared.contracts.events.interactions import FilterAction
from tests.support.waiting import eventually
from tests.unit.router.conftest import GatewayHarness

ANSWERS = [("chat", False), ("chat", True), ("responses", False), ("responses", True)]


class StubModeration:
    """An endpoint that flags what has a word; it can be slow, and fail."""

    def __init__(self) -> None:
        self.word = "\0"
        self.inputs: list[list[str]] = []
        self.status = 200
        self.answering = asyncio.Event()
        self.answering.set()

    async def answer(self, request: web.Request) -> web.Response:
        asked: list[str] = (await request.json())["input"]
        self.inputs.append(asked)
        await self.answering.wait()
        results = [
            {"flagged": self.word in text, "categories": {"violence": self.word in text}}
            for text in asked
        ]
        return web.json_response({"results": results}, status=self.status)


@pytest.fixture
async def stub() -> StubModeration:
    return StubModeration()


@pytest.fixture
async def url(stub: StubModeration) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/moderations", stub.answer)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")
        stub.answering.set()


async def asked(bench: GatewayHarness, api: str, *, stream: bool) -> str:
    """All that a client is told; a stream's pieces of text stand together before it."""
    if api == "chat":
        told = (await bench.ask(stream=stream)).text
    else:
        body = {"model": "m", "input": "hi", "stream": stream}
        told = (await bench.client.post("/v1/responses", json=body)).text
    pieces = [
        choice["delta"].get("content") or ""
        for event in told.split("\n\n")
        if stream and event.startswith("data: {")
        for choice in orjson.loads(event[6:]).get("choices", ())
    ]
    return "".join(pieces) + told


async def outcomes(bench: GatewayHarness) -> set[str]:
    text = (await bench.client.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("ratchet_router_moderations_")]
    return {line.split('"')[1] for line in lines if 'outcome="' in line and line.endswith(" 1.0")}


@pytest.mark.parametrize(("api", "stream"), ANSWERS)
async def test_a_flagged_answer_is_refused_and_on_record(
    bench: GatewayHarness, stub: StubModeration, url: str, api: str, *, stream: bool
) -> None:
    stub.word = TEXT.split()[-1]
    await bench.start(moderation=ModerationPolicy(url))
    bench.route()
    told = await asked(bench, api, stream=stream)
    assert FILTERED in told
    assert stub.word not in told
    (event,) = bench.events()
    assert event.output_filter is not None
    assert (event.output_filter.action, event.output_filter.rules) == (
        "block",
        ("moderation/violence",),
    )
    assert "filtered" in event.untrainable
    assert stub.word in event.completion
    assert await outcomes(bench) == {"flagged"}


@pytest.mark.parametrize(("api", "stream"), ANSWERS)
async def test_what_is_not_flagged_passes_as_it_was(
    bench: GatewayHarness, stub: StubModeration, url: str, api: str, *, stream: bool
) -> None:
    await bench.start(moderation=ModerationPolicy(url, model="omni"))
    bench.route()
    told = await asked(bench, api, stream=stream)
    assert FILTERED not in told
    assert TEXT.split()[-1] in told
    if stream and api == "chat":
        assert told.endswith("data: [DONE]\n\n")
    (event,) = bench.events()
    assert event.output_filter is None
    assert "".join(stub.inputs[0]).count(TEXT) >= 1
    assert await outcomes(bench) == {"passed"}


@pytest.mark.parametrize("fail_open", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["slow", "refusing", "away"])
async def test_what_cannot_be_judged_is_shown_or_not_by_setting(
    bench: GatewayHarness,
    stub: StubModeration,
    url: str,
    how: str,
    *,
    stream: bool,
    fail_open: bool,
) -> None:
    if how == "slow":
        stub.answering.clear()
    elif how == "refusing":
        stub.status = 429
    else:
        url = "http://127.0.0.1:1"
    policy = ModerationPolicy(url, fail_open=fail_open, timeout_s=0.2 if how == "slow" else 20)
    await bench.start(moderation=policy)
    bench.route()
    told = await asked(bench, "chat", stream=stream)
    assert (TEXT.split()[-1] in told) is fail_open
    (event,) = bench.events()
    assert event.output_filter is not None
    assert event.output_filter.rules == (UNAVAILABLE,)
    assert event.output_filter.action == ("flag" if fail_open else "block")
    assert event.outcome == "ok", "it is no fault of the engine"
    assert await outcomes(bench) == {"timeout" if how == "slow" else "failed"}


async def test_a_flag_alone_changes_nothing_but_the_record(
    bench: GatewayHarness, stub: StubModeration, url: str
) -> None:
    stub.word = TEXT.split()[-1]
    await bench.start(moderation=ModerationPolicy(url, action=FilterAction.flag))
    bench.route()
    assert stub.word in await asked(bench, "chat", stream=False)
    (event,) = bench.events()
    assert event.output_filter is not None
    assert event.output_filter.action == "flag"


@pytest.mark.parametrize("stream", [False, True])
async def test_rules_come_first_and_what_they_refuse_is_not_asked(
    bench: GatewayHarness, stub: StubModeration, url: str, *, stream: bool
) -> None:
    rule = FilterRule(name="last", action=FilterAction.block, words=(TEXT.split()[0],))
    await bench.start(moderation=ModerationPolicy(url), filter_rules=FilterRules([rule]))
    bench.route()
    assert FILTERED in await asked(bench, "chat", stream=stream)
    assert stub.inputs == []


def endpoint_of(session: aiohttp.ClientSession, policy: ModerationPolicy) -> ModerationEndpoint:
    return ModerationEndpoint(session, policy, dict, CollectorRegistry())


async def test_questions_at_a_time_are_bounded(stub: StubModeration, url: str) -> None:
    stub.answering.clear()
    first, second = FilterFindings(), FilterFindings()
    async with aiohttp.ClientSession() as session:
        endpoint = endpoint_of(session, ModerationPolicy(url, timeout_s=20, max_running=1))
        asking = asyncio.create_task(endpoint.judge(["one"], first))
        await eventually(lambda: stub.inputs, "the first question is there")
        await endpoint.judge(["two"], second)
        stub.answering.set()
        await asking
    assert (list(first.rules), list(second.rules)) == ([], [UNAVAILABLE])


async def test_as_many_questions_run_as_the_setting_allows(stub: StubModeration, url: str) -> None:
    stub.answering.clear()
    policy = ModerationPolicy(url, max_running=150, timeout_s=30)
    async with client_session() as session:
        endpoint = endpoint_of(session, policy)
        findings = [FilterFindings() for _ in range(150)]
        asking = [asyncio.create_task(endpoint.judge(["text"], one)) for one in findings]
        await eventually(lambda: len(stub.inputs) == 150, "all are asked at a time")
        stub.answering.set()
        await asyncio.gather(*asking)
    assert all(one.action is None for one in findings)


def event_of(text: str, index: int = 0) -> bytes:
    value: dict[str, Any] = {
        "id": "t",
        "object": "chat.completion.chunk",
        "choices": [{"index": index, "delta": {"content": text}, "finish_reason": None}],
    }
    return b"data: " + orjson.dumps(value) + b"\n\n"


async def test_a_window_leaves_once_it_was_seen_with_what_stood_before_it(
    stub: StubModeration, url: str
) -> None:
    words = [f"{number:09d} " for number in range(3 * WINDOW // 10)]
    out: list[bytes] = []
    async with aiohttp.ClientSession() as session:
        endpoint = endpoint_of(session, ModerationPolicy(url))
        windows = ModerationWindows(endpoint, FilterFindings(), "chat")
        for number, word in enumerate(words):
            out.append(await windows.feed(event_of(word, number % 2)))
        assert out.count(b"") == len(words) - 3, "each window waits for its last event"
        out.append(await windows.finish(b""))
    assert b"".join(out) == b"".join(
        event_of(word, number % 2) for number, word in enumerate(words)
    )
    first, second, _ = stub.inputs
    assert [len(text) for text in first] == [WINDOW // 2, WINDOW // 2], "each choice by itself"
    assert [text[:CONTEXT] for text in second] == [text[-CONTEXT:] for text in first]


async def test_a_stream_is_refused_where_it_is_flagged_and_goes_no_further(
    stub: StubModeration, url: str
) -> None:
    stub.word = "knife"
    async with aiohttp.ClientSession() as session:
        findings = FilterFindings()
        windows = ModerationWindows(endpoint_of(session, ModerationPolicy(url)), findings, "chat")
        passed = await windows.feed(event_of("x" * WINDOW))
        assert await windows.feed(event_of("a kni")) == b""
        refused = await windows.feed(event_of("fe " + "y" * WINDOW))
        rest = await windows.finish(b"")
    assert passed == event_of("x" * WINDOW)
    (choice,) = orjson.loads(refused.removeprefix(b"data: "))["choices"]
    assert choice == {"index": 0, "delta": {}, "finish_reason": FILTERED}
    assert (rest, findings.blocked) == (b"", True)


async def test_a_refusal_ends_every_choice_that_the_client_has_seen(
    stub: StubModeration, url: str
) -> None:
    stub.word = "knife"
    async with aiohttp.ClientSession() as session:
        policy = ModerationPolicy(url)
        windows = ModerationWindows(endpoint_of(session, policy), FilterFindings(), "chat")
        assert await windows.feed(event_of("x" * WINDOW, 0) + event_of("a", 1) + event_of("b", 2))
        refused = await windows.finish(event_of("knife", 2))
    choices = orjson.loads(refused.removeprefix(b"data: "))["choices"]
    assert [(one["index"], one["finish_reason"]) for one in choices] == [
        (0, FILTERED), (1, FILTERED), (2, FILTERED)
    ]  # fmt: skip


async def test_arguments_of_a_tool_are_judged_in_streams_of_the_messages_api_too(
    stub: StubModeration, url: str
) -> None:
    stub.word = "knife"
    async with aiohttp.ClientSession() as session:
        findings = FilterFindings()
        endpoint = endpoint_of(session, ModerationPolicy(url))
        windows = ModerationWindows(endpoint, findings, "messages")
        for piece in ('{"buy": "a kni', 'fe"}'):
            delta = {"type": "input_json_delta", "partial_json": piece}
            value = {"type": "content_block_delta", "index": 1, "delta": delta}
            event = b"event: content_block_delta\ndata: " + orjson.dumps(value) + b"\n\n"
            assert await windows.feed(event) == b""
        assert await windows.finish(b"") == b""
    assert findings.blocked


async def test_a_long_text_is_asked_in_pieces(stub: StubModeration, url: str) -> None:
    async with aiohttp.ClientSession() as session:
        await endpoint_of(session, ModerationPolicy(url)).judge(
            ["x" * (PIECE + 1), ""], FilterFindings()
        )
    assert [len(text) for text in stub.inputs[0]] == [PIECE, 1]


@pytest.mark.parametrize(
    ("result", "found"),
    [
        ({"flagged": False, "categories": {"violence": True}}, set()),
        ({"flagged": True, "categories": {"violence": True, "made-up": True}}, {"violence"}),
        ({"flagged": True, "categories": {"made-up": True}}, {"other"}),
        ({"flagged": True}, {"other"}),
    ],
)
def test_categories_are_a_closed_set(result: dict[str, Any], found: set[str]) -> None:
    assert flagged_categories(orjson.dumps({"results": [result]}), 1) == found


@pytest.mark.parametrize(
    "verdict",
    [b"[]", b"no json", b'{"results": []}', b'{"results": [{}]}', b'{"results": [{"flagged": 1}]}'],
)
def test_what_is_no_verdict_is_none(verdict: bytes) -> None:
    with pytest.raises(ValueError, match=r"results|literal"):
        flagged_categories(verdict, 1)
