"""The content filter on output: what clients see, whole or streamed, and what is recorded."""

from __future__ import annotations

import asyncio
import random
import timeit
import tracemalloc
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from benchmarks.stub_engine import TEXT, responses_events
from services.router import filtered_streams
from services.router.answer_texts import text_matches
from services.router.filter_rules import LOOK_BACK, MASK, FilterRule, FilterRules, RuleSet, masked
from services.router.filtered_streams import (
    CHECKS,
    MAX_HELD_BYTES,
    MAX_HELD_EVENTS,
    HeldBytes,
    HeldStream,
    LookBackStream,
)
from services.router.moderation_endpoint import ModerationPolicy
from services.router.output_filter import filter_whole
from services.router.proxy import Deadlines
from shared.contracts.events.interactions import FilterAction
from tests.unit.router.conftest import GatewayHarness

SECRET = FilterRule(name="secret", action=FilterAction.mask, words=("warehouse this morning",))
FLAGGED = FilterRule(name="noon", action=FilterAction.flag, regex="noon")


def with_action(action: str, **fields: Any) -> FilterRules:
    return FilterRules([SECRET.model_copy(update={"action": FilterAction(action), **fields})])


def chunk(text: str, index: int = 0, name: str = "content", **more: Any) -> bytes:
    value = {
        "id": "t",
        "object": "chat.completion.chunk",
        "choices": [{"index": index, "delta": {name: text}, "finish_reason": None, **more}],
    }
    return b"data: " + orjson.dumps(value) + b"\n\n"


def texts(events: bytes, index: int = 0, name: str = "content") -> list[str]:
    found: list[str] = []
    for event in events.split(b"\n\n"):
        if event.startswith(b"data: {"):
            choices = orjson.loads(event[6:])["choices"]
            own = (choice for choice in choices if choice["index"] == index)
            found += (choice.get("delta", choice).get(name) or "" for choice in own)
    return found


def through(rules: RuleSet, pieces: list[str]) -> str:
    stream = LookBackStream(rules, HeldBytes())
    out = b"".join(stream.feed(chunk(piece)) for piece in pieces) + stream.finish()
    return "".join(texts(out))


@pytest.mark.parametrize("seed", range(60))
def test_a_streamed_answer_is_masked_like_a_whole_one_however_it_is_cut(seed: int):
    draw = random.Random(seed)
    rules = RuleSet(
        [
            FilterRule(name="words", action=FilterAction.mask, words=("bad", "very bad idea")),
            FilterRule(name="number", action=FilterAction.mask, regex=r"\d{3,16}"),
        ]
    )
    words = ["bad", "badge", "very", "idea", "ok", "12", "34567", ".", "a" * 90, "\n"]
    text = "".join(draw.choice(words) + draw.choice([" ", "", "  "]) for _ in range(200))
    pieces, at = list[str](), 0
    while at < len(text):
        size = draw.choice([1, 2, 5, 40, 700])
        pieces.append(text[at : at + size])
        at += size
    assert through(rules, pieces) == masked(text, rules.matches(text))


def test_a_text_leaves_as_soon_as_no_match_can_begin_in_it():
    stream = LookBackStream(RuleSet([SECRET]), HeldBytes())
    sent = [len("".join(texts(stream.feed(chunk("x" * 64))))) for _ in range(40)]
    assert sum(sent) >= 40 * 64 - LOOK_BACK - 64
    assert stream.feed(chunk("", finish_reason="stop")) == b""
    assert b'"stop"' in stream.finish()


def test_a_blocked_stream_ends_without_the_phrase_and_says_why():
    rules = RuleSet([SECRET.model_copy(update={"action": FilterAction.block})])
    stream = LookBackStream(rules, HeldBytes())
    pieces = [
        "It left our ware",
        "house this",
        " morning",
        " and arrives" + "." * (LOOK_BACK // CHECKS),
    ]
    out = b"".join(stream.feed(chunk(piece)) for piece in pieces)
    assert stream.findings.blocked
    assert "".join(texts(out)) == ""
    assert b'"finish_reason":"content_filter"' in out
    assert stream.finish() == b""


def test_what_leaves_a_full_stream_early_was_looked_at():
    stream = LookBackStream(RuleSet([SECRET]), HeldBytes())
    out = stream.feed(chunk("warehouse this morning"))
    assert out == b""
    out = b"".join(stream.feed(chunk("", 1)) for _ in range(MAX_HELD_EVENTS))
    assert texts(out) == [MASK]


def test_thousands_of_words_are_found_as_fast_as_a_few():
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghij", k=7)) for _ in range(3_000)]
    rules = [
        RuleSet([FilterRule(name="words", action=FilterAction.mask, words=tuple(chosen))])
        for chosen in (words[:1], words)
    ]
    text = "zebra zest " * 2_000
    few, many = (
        min(timeit.repeat(partial(one.matches, text), timer=process_time, number=1))
        for one in rules
    )
    assert many < 20 * few
    assert [match.end for match in rules[1].matches(" ".join(words[:9]))] == list(range(7, 72, 8))


def test_of_words_that_begin_alike_each_is_found():
    words = ("art", "arts and crafts", "article", "a+", "Ärger")
    rules = RuleSet([FilterRule(name="words", action=FilterAction.mask, words=words)])
    text = "art ARTS  and\ncrafts articles article a+ a ärger"
    found = [text[match.start : match.end] for match in rules.matches(text)]
    assert found == ["art", "ARTS  and\ncrafts", "article", "a+", "ärger"]


def test_reasoning_does_not_hold_back_the_answer_behind_it_and_choices_do_not_mix():
    stream = LookBackStream(RuleSet([SECRET]), HeldBytes())
    out = stream.feed(chunk("warehouse this ", name="reasoning"))
    out += b"".join(stream.feed(chunk("y" * 100)) for _ in range(10))
    assert "".join(texts(out, name="reasoning")) == "warehouse this "
    assert len("".join(texts(out))) >= 400
    out = stream.feed(chunk("warehouse ", 1)) + stream.feed(chunk("this morning", 2))
    assert stream.finish()
    assert stream.findings.action is None


def test_token_probabilities_do_not_tell_what_is_held_back():
    stream = LookBackStream(RuleSet([SECRET]), HeldBytes())
    out = stream.feed(chunk("warehouse this morning ", logprobs={"content": [{"token": "w"}]}))
    out += stream.finish()
    assert b"logprobs" not in out
    assert "".join(texts(out)) == f"{MASK} "
    body = {"choices": [{"message": {"content": TEXT}, "logprobs": {"content": []}}]}
    whole, _, _ = filter_whole(RuleSet([SECRET]), orjson.dumps(body), "chat")
    assert b"logprobs" not in whole
    assert MASK.encode() in whole


def test_the_tokens_of_a_masked_answer_do_not_tell_its_text():
    stream = LookBackStream(RuleSet([SECRET]), HeldBytes())
    out = stream.feed(chunk("warehouse this morning ", token_ids=[7])) + stream.finish()
    choice = {"message": {"content": TEXT}, "token_ids": [7]}
    part = {"type": "output_text", "text": TEXT, "logprobs": [{"token": "w"}]}
    chat, _, _ = filter_whole(RuleSet([SECRET]), orjson.dumps({"choices": [choice]}), "chat")
    body = {"output": [{"type": "message", "content": [part]}]}
    responses, _, _ = filter_whole(RuleSet([SECRET]), orjson.dumps(body), "responses")
    for shown in (out, chat, responses):
        assert MASK.encode() in shown
        assert b"token_ids" not in shown
        assert b"logprobs" not in shown


def test_arguments_of_a_tool_are_looked_at_in_the_form_of_the_messages_api_too():
    given = {"query": TEXT, "more": [{"note": TEXT}], "count": 3}
    block = {"type": "tool_use", "id": "t", "name": "search", "input": given}
    body = orjson.dumps({"content": [block]})
    shown, _, findings = filter_whole(RuleSet([SECRET]), body, "messages")
    assert findings.action is FilterAction.mask
    assert b"warehouse" not in shown
    assert shown.count(MASK.encode()) == 2
    assert orjson.loads(shown)["content"][0]["input"]["count"] == 3


def test_a_held_stream_is_looked_at_where_a_text_comes_in_no_piece():
    stream = HeldStream(RuleSet([SECRET]), HeldBytes())
    call = {"type": "function_call", "arguments": orjson.dumps({"where": TEXT}).decode()}
    value = {"type": "response.output_item.done", "item": call}
    stream.feed(b"event: x\ndata: " + orjson.dumps(value) + b"\n\n")
    assert stream.finish() == b""
    assert stream.findings.blocked


def call_pieces(number: int, pieces: list[str], **more: Any) -> list[bytes]:
    calls = [{"index": number, "function": {"arguments": piece}} for piece in pieces]
    return [
        b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}], **more})
        + b"\n\n"
        for call in calls
    ]  # fmt: skip


def arguments(events: bytes) -> dict[int, str]:
    found: dict[int, str] = {}
    for event in events.split(b"\n\n"):
        for choice in orjson.loads(event[6:])["choices"] if event else ():
            for call in choice["delta"]["tool_calls"]:
                number = call["index"]
                found[number] = found.get(number, "") + call["function"]["arguments"]
    return found


def escaped(text: str, draw: random.Random) -> str:
    """JSON of a text in which any character may be an escape, as an engine may write it."""
    out: list[str] = []
    for char in text:
        units = char.encode("utf-16-be").hex()
        long = "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
        out.append(draw.choice([orjson.dumps(char).decode()[1:-1], long]))
    return "".join(out)


@pytest.mark.parametrize("seed", range(40))
def test_arguments_are_masked_by_what_their_escapes_mean_however_they_are_cut(seed: int):
    draw = random.Random(seed)
    rules = RuleSet([SECRET.model_copy(update={"words": ("warehouse this morning", "😀 smile")})])
    words = ["warehouse", "this", "morning", "😀", "smile", "x" * 300, "é", '"', "\\", "u0077"]
    texts = [" ".join(draw.choices(words, k=60)) + " warehouse\nthis morning." for _ in range(2)]
    given = [f'{{"q": "{escaped(text, draw)}"}}' for text in texts]
    queues: list[list[bytes]] = []
    for number, whole in enumerate(given):
        pieces, at = list[str](), 0
        while at < len(whole):
            size = draw.choice([1, 3, 50, 900])
            pieces.append(whole[at : at + size])
            at += size
        queues.append(call_pieces(number, pieces))
    stream = LookBackStream(rules, HeldBytes())
    out = b""
    while left := [queue for queue in queues if queue]:
        out += stream.feed(draw.choice(left).pop(0))
    shown = arguments(out + stream.finish())
    for number, text in enumerate(texts):
        assert orjson.loads(shown[number])["q"] == masked(text, rules.matches(text))
        body = {
            "choices": [{"message": {"tool_calls": [{"function": {"arguments": given[number]}}]}}]
        }
        whole, _, _ = filter_whole(rules, orjson.dumps(body), "chat")
        (call,) = orjson.loads(whole)["choices"][0]["message"]["tool_calls"]
        assert call["function"]["arguments"] == shown[number]


def test_a_text_that_is_no_json_is_not_taken_for_it():
    rules = RuleSet([SECRET])
    text = r"warehouse\u0020this morning"
    assert not text_matches(rules, "content", text)
    assert [match[:2] for match in text_matches(rules, "arguments", text)] == [(0, len(text))]


def test_parallel_calls_do_not_hide_a_phrase_from_each_other_nor_make_one():
    stream = LookBackStream(RuleSet([SECRET]), HeldBytes())
    one = call_pieces(0, ['{"a": "warehouse ', 'this morning"}'])
    other = call_pieces(1, ['{"b": "ware', 'house", "this": "morning"}'])
    out = b"".join(stream.feed(event) for event in (one[0], other[0], one[1], other[1]))
    shown = arguments(out + stream.finish())
    assert shown == {0: f'{{"a": "{MASK}"}}', 1: '{"b": "warehouse", "this": "morning"}'}


def test_parallel_calls_of_custom_tools_do_not_hide_a_phrase_either():
    stream = LookBackStream(RuleSet([SECRET]), HeldBytes())
    out = b""
    for number, piece in ((0, "warehouse "), (1, "ware"), (0, "this morning"), (1, "house")):
        call = {"index": number, "type": "custom", "custom": {"input": piece}}
        value = {"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}
        out += stream.feed(b"data: " + orjson.dumps(value) + b"\n\n")
    out += stream.finish()
    assert MASK.encode() in out
    assert b"this morning" not in out


@pytest.mark.parametrize("kind", ["input_json_delta", "response.function_call_arguments.delta"])
def test_escapes_in_arguments_of_held_streams_hide_nothing(kind: str):
    stream = HeldStream(RuleSet([SECRET]), HeldBytes())
    for number, piece in ((0, r'{"a": "\u0077are'), (1, "{}"), (0, r'house\nthis morning"}')):
        value: dict[str, Any] = {"type": kind, "output_index": number, "delta": piece}
        if kind == "input_json_delta":
            delta = {"type": kind, "partial_json": piece}
            value = {"type": "content_block_delta", "index": number, "delta": delta}
        stream.feed(b"event: x\ndata: " + orjson.dumps(value) + b"\n\n")
    assert stream.finish() == b""
    assert stream.findings.blocked


def test_what_all_streams_hold_back_is_bounded_and_spares_small_ones(
    monkeypatch: pytest.MonkeyPatch,
):
    in_all = 4 * MAX_HELD_BYTES
    monkeypatch.setattr(filtered_streams, "MAX_HELD_IN_ALL", in_all)
    rules, held = RuleSet([SECRET]), HeldBytes()
    event = b"event: x\ndata: " + orjson.dumps({"delta": "y" * (MAX_HELD_BYTES // 2)}) + b"\n\n"
    large: list[HeldStream] = []
    while held.held <= in_all - len(event):
        large.append(HeldStream(rules, held))
        large[-1].feed(event)
        assert not large[-1].findings.blocked
    small, next_one = HeldStream(rules, held), HeldStream(rules, held)
    small.feed(b"event: x\ndata: {}\n\n")
    next_one.feed(event)
    assert not small.findings.blocked
    assert next_one.findings.blocked
    for stream in (*large, small, next_one):
        stream.close()
    assert (held.held, held.streams) == (0, 0)


def test_a_look_back_that_would_hold_too_many_bytes_lets_the_first_ones_go():
    held = HeldBytes()
    stream = LookBackStream(RuleSet([SECRET]), held)
    padding = "z" * (MAX_HELD_BYTES // 8)
    first = stream.feed(chunk("warehouse this morning", padding=padding))
    assert first == b""
    out = b"".join(stream.feed(chunk("", 1, padding=padding)) for _ in range(4))
    assert texts(out)[0] == MASK
    assert held.held <= MAX_HELD_BYTES
    stream.close()
    assert held.held == 0


LETTERS = "".join(map(chr, range(97, 123)))


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(chunk("hey "), id="a token"),
        pytest.param(chunk("", padding=[[]] * 200), id="lists"),
        pytest.param(chunk("", padding=[{}] * 200), id="objects"),
        pytest.param(chunk("", padding=[{"a": {"b": 1_000}}] * 100), id="fields"),
        pytest.param(chunk("", padding=["ab"] * 300), id="short texts"),
        pytest.param(chunk("", padding=[0.5] * 300), id="numbers"),
        pytest.param(chunk(LETTERS * 9 + "\N{GRINNING FACE}"), id="a wide character"),
    ],
)
def test_what_is_held_back_is_counted_as_the_memory_that_it_takes(event: bytes):
    held, rules = HeldBytes(), RuleSet([SECRET])
    streams = [LookBackStream(rules, held) for _ in range(100)]
    tracemalloc.start()
    try:
        for stream in streams:
            stream.feed(event)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    channels = 1_500 * len(streams)  # of a stream that holds nothing, too
    assert taken - channels <= held.held <= 5 * taken


async def answer_or_tear(request: web.Request) -> web.StreamResponse:
    """An engine that says the same of each version, and whose candidate breaks off."""
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(chunk(TEXT))
    if (await request.json())["model"] == "m-v1.0":
        await response.write(chunk("", finish_reason="stop") + b"data: [DONE]\n\n")
    return response


async def test_a_failed_attempt_that_nobody_saw_is_not_counted(bench: GatewayHarness):
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer_or_tear)
    async with TestServer(app) as engine:
        await bench.start(
            filter_rules=with_action("mask"), engines=(str(engine.make_url("")).rstrip("/"),)
        )
        bench.route(candidate="m-v1.1")
        answer = await bench.ask(stream=True)
        assert MASK in "".join(texts(answer.content))
        (event,) = bench.events()
        assert [attempt.arm for attempt in event.attempts] == ["candidate", "fallback"]
        line = 'ratchet_router_filtered_total{action="mask",model="m",rule="secret"} 1.0'
        assert line in (await bench.client.get("/metrics")).text


def test_a_stream_that_repeats_itself_at_the_end_is_held_and_masking_refuses():
    stream = HeldStream(RuleSet([SECRET]), HeldBytes())
    for piece in ("our warehouse this ", "morning"):
        value = {"type": "response.output_text.delta", "delta": piece}
        assert stream.feed(b"event: x\ndata: " + orjson.dumps(value) + b"\n\n") == b""
    assert stream.finish() == b""
    assert stream.findings.blocked


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_masked_is_recorded_and_not_trained_on(bench: GatewayHarness, stream: bool):
    await bench.start(filter_rules=with_action("mask"))
    bench.route()
    response = await bench.ask(stream=stream)
    assert response.status_code == 200
    shown = "".join(texts(response.content)) if stream else response.text
    assert f"Your parcel left our {MASK} and arrives" in shown
    (event,) = bench.events()
    assert event.output_filter is not None
    assert (event.output_filter.action, event.output_filter.rules) == ("mask", ("secret",))
    assert event.completion == TEXT
    assert event.untrainable == ("filtered",)
    scrape = (await bench.client.get("/metrics")).text
    line = 'ratchet_router_filtered_total{action="mask",model="m",rule="secret"} 1.0'
    assert line in scrape


@pytest.mark.parametrize("path", ["chat/completions", "responses"])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_blocked_never_reaches_the_client(
    bench: GatewayHarness, stream: bool, path: str
):
    await bench.start(filter_rules=with_action("block"))
    bench.route()
    asked = {"input": "where?"} if path == "responses" else {"messages": MESSAGES}
    body = {"model": "m", "stream": stream, **asked}
    response = await bench.client.post(f"/v1/{path}", json=body)
    assert b"parcel" not in response.content
    assert b"content_filter" in response.content
    if path == "responses" and not stream:
        assert response.status_code == 400
    (event,) = bench.events()
    assert (event.outcome, event.finish_reason) == ("ok", "content_filter")


@pytest.mark.parametrize("heartbeat_s", [0.0, 0.05])
async def test_a_stream_that_is_held_to_its_end_has_heartbeats_while_the_engine_writes(
    bench: GatewayHarness, heartbeat_s: float
):
    async def answer_piece_by_piece(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for event in responses_events("m", TEXT, 20):
            await response.write(event)
            await asyncio.sleep(0.01)
        return response

    app = web.Application()
    app.router.add_post("/v1/responses", answer_piece_by_piece)
    async with TestServer(app) as engine:
        await bench.start(
            engines=(str(engine.make_url("")).rstrip("/"),),
            filter_rules=FilterRules([FLAGGED]),
            deadlines=Deadlines(60.0, 120.0, heartbeat_s),
        )
        bench.route()
        body = {"model": "m", "stream": True, "input": "where?"}
        answer = await bench.client.post("/v1/responses", json=body)
    assert (": heartbeat" in answer.text) is (heartbeat_s > 0)
    assert answer.text.count("event: response.completed") == 1
    assert TEXT in answer.text


async def answer_at_once(request: web.Request) -> web.StreamResponse:
    """An engine of the Responses API that sends no pieces, the whole answer alone."""
    response = web.StreamResponse()
    await response.prepare(request)
    content = [{"type": "output_text", "text": TEXT}]
    output = [{"type": "message", "role": "assistant", "content": content}]
    value = {"id": "r", "object": "response", "status": "completed", "output": output}
    await response.write(
        b"event: response.completed\ndata: "
        + orjson.dumps({"type": "response.completed", "response": value})
        + b"\n\n"
    )
    return response


@pytest.mark.parametrize("by", ["rules", "moderation", "nothing"])
async def test_the_last_event_of_a_stream_is_looked_at_too(bench: GatewayHarness, by: str):
    app = web.Application()
    app.router.add_post("/v1/responses", answer_at_once)
    async with TestServer(app) as engine:
        await bench.start(
            engines=(str(engine.make_url("")).rstrip("/"),),
            filter_rules=with_action("block") if by == "rules" else FilterRules([FLAGGED]),
            moderation=ModerationPolicy("http://127.0.0.1:1") if by == "moderation" else None,
        )
        bench.route()
        body = {"model": "m", "stream": True, "input": "where?"}
        answer = await bench.client.post("/v1/responses", json=body)
    shown = answer.text.count("parcel"), answer.text.count("content_filter")
    assert shown == ((1, 0) if by == "nothing" else (0, 1))
    (event,) = bench.events()
    assert (event.finish_reason == "content_filter") == (by != "nothing")


async def test_streams_give_back_what_they_held_however_they_end(bench: GatewayHarness):
    await bench.start(filter_rules=with_action("mask"))
    bench.route()
    await bench.ask(stream=True)
    await bench.client.post("/v1/responses", json={"model": "m", "stream": True, "input": "where?"})
    held = bench.output_filter.held
    assert (held.held, held.streams) == (0, 0)


async def test_a_flag_changes_nothing_but_the_record(bench: GatewayHarness):
    await bench.start(filter_rules=FilterRules([FLAGGED]))
    bench.route()
    assert TEXT in (await bench.ask()).text
    assert TEXT in "".join(texts((await bench.ask(stream=True)).content))
    for event in bench.events():
        assert event.output_filter is not None
        assert event.output_filter.action == "flag"
        assert not event.untrainable


@pytest.mark.parametrize("fields", [{"tenants": ("acme",)}, {"models": ("other",)}])
async def test_a_rule_of_others_does_not_apply(bench: GatewayHarness, fields: dict[str, Any]):
    await bench.start(filter_rules=with_action("block", **fields))
    bench.route()
    assert TEXT in (await bench.ask()).text
    assert bench.events()[0].output_filter is None


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{name: a, action: mask}", "either words or a regex"),
        ("{name: a, action: mask, regex: '('}", "regex"),
        ("{name: a, action: mask, regex: 'x*'}", "matches an empty text"),
        ("{name: a, action: mask, words: [filtered]}", "or the mask"),
        ("{name: a, action: hide, words: [x]}", "rules.0.action"),
        ("{name: a, action: mask, words: [x], tenant: acme}", "rules.0.tenant"),
    ],
)
def test_a_wrong_rule_is_refused_by_its_place(tmp_path: Path, rule: str, message: str):
    file = tmp_path / "rules.yaml"
    file.write_text(f"rules: [{rule}]")
    with pytest.raises(ValueError, match=message):
        FilterRules.read(file)


def test_rules_are_read_and_words_match_whole_in_any_case(tmp_path: Path):
    file = tmp_path / "rules.yaml"
    file.write_text("rules: [{name: a, action: mask, words: [Project X]}]")
    rules = FilterRules.read(file).of("default", "assistant")
    assert rules is not None
    assert [match.rule.name for match in rules.matches("a PROJECT\nx, projectx, project xy")] == [
        "a"
    ]
    with pytest.raises(ValueError, match="absent"):
        FilterRules.read(tmp_path / "absent.yaml")


MESSAGES = [{"role": "user", "content": "Where is my parcel?"}]
