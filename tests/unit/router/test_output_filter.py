"""The content filter on output: what clients see, whole or streamed, and what is recorded."""

from __future__ import annotations

import random
import timeit
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from benchmarks.stub_engine import TEXT
from services.router.filter_rules import LOOK_BACK, MASK, FilterRule, FilterRules, RuleSet, masked
from services.router.output_filter import (
    CHECK_EVERY,
    MAX_HELD_EVENTS,
    HeldStream,
    LookBackStream,
    filter_whole,
)
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
    stream = LookBackStream(rules)
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
    stream = LookBackStream(RuleSet([SECRET]))
    sent = [len("".join(texts(stream.feed(chunk("x" * 64))))) for _ in range(40)]
    assert sum(sent) >= 40 * 64 - LOOK_BACK - 64
    assert stream.feed(chunk("", finish_reason="stop")) == b""
    assert b'"stop"' in stream.finish()


def test_a_blocked_stream_ends_without_the_phrase_and_says_why():
    rules = RuleSet([SECRET.model_copy(update={"action": FilterAction.block})])
    stream = LookBackStream(rules)
    pieces = ["It left our ware", "house this", " morning", " and arrives" + "." * CHECK_EVERY]
    out = b"".join(stream.feed(chunk(piece)) for piece in pieces)
    assert stream.findings.blocked
    assert "".join(texts(out)) == ""
    assert b'"finish_reason":"content_filter"' in out
    assert stream.finish() == b""


def test_what_leaves_a_full_stream_early_was_looked_at():
    stream = LookBackStream(RuleSet([SECRET]))
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
    few, many = (min(timeit.repeat(partial(one.matches, text), number=1)) for one in rules)
    assert many < 20 * few
    assert [match.end for match in rules[1].matches(" ".join(words[:9]))] == list(range(7, 72, 8))


def test_of_words_that_begin_alike_each_is_found():
    words = ("art", "arts and crafts", "article", "a+", "Ärger")
    rules = RuleSet([FilterRule(name="words", action=FilterAction.mask, words=words)])
    text = "art ARTS  and\ncrafts articles article a+ a ärger"
    found = [text[match.start : match.end] for match in rules.matches(text)]
    assert found == ["art", "ARTS  and\ncrafts", "article", "a+", "ärger"]


def test_reasoning_does_not_hold_back_the_answer_behind_it_and_choices_do_not_mix():
    stream = LookBackStream(RuleSet([SECRET]))
    out = stream.feed(chunk("warehouse this ", name="reasoning"))
    out += b"".join(stream.feed(chunk("y" * 100)) for _ in range(10))
    assert "".join(texts(out, name="reasoning")) == "warehouse this "
    assert len("".join(texts(out))) >= 400
    out = stream.feed(chunk("warehouse ", 1)) + stream.feed(chunk("this morning", 2))
    assert stream.finish()
    assert stream.findings.action is None


def test_token_probabilities_do_not_tell_what_is_held_back():
    stream = LookBackStream(RuleSet([SECRET]))
    out = stream.feed(chunk("warehouse this morning ", logprobs={"content": [{"token": "w"}]}))
    out += stream.finish()
    assert b"logprobs" not in out
    assert "".join(texts(out)) == f"{MASK} "
    body = {"choices": [{"message": {"content": TEXT}, "logprobs": {"content": []}}]}
    whole, _, _ = filter_whole(RuleSet([SECRET]), orjson.dumps(body), "chat")
    assert b"logprobs" not in whole
    assert MASK.encode() in whole


def test_the_tokens_of_a_masked_answer_do_not_tell_its_text():
    stream = LookBackStream(RuleSet([SECRET]))
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
    stream = HeldStream(RuleSet([SECRET]))
    call = {"type": "function_call", "arguments": orjson.dumps({"where": TEXT}).decode()}
    value = {"type": "response.output_item.done", "item": call}
    stream.feed(b"event: x\ndata: " + orjson.dumps(value) + b"\n\n")
    assert stream.finish() == b""
    assert stream.findings.blocked


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
    stream = HeldStream(RuleSet([SECRET]))
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
