"""An answer is stored alike whether it was streamed or whole."""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime
from functools import partial

import orjson
import pytest

from services.router.call import Call, EngineAttempt
from services.router.fields import FieldRules
from services.router.identity import IdentityRules
from services.router.interactions import event_json
from services.router.request import read_request
from services.router.response import StreamReader, read_response
from services.router.responses_api import ResponsesReader, read_responses_answer
from services.router.state import RouteChoice
from services.router.streamed_answer import MAX_READ
from shared.contracts.conversation import MAX_CALLS
from shared.contracts.events.interactions import InteractionRecorded
from shared.redaction import Redactor
from shared.redaction.detection import DetectedSpan, Review, reviewed

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
WORDS = (
    "Rome",
    "21 °C",
    "bob@example.com",
    "日本",
    "😀",
    '"',
    "\\",
    "\n",
    "sk-abcdefghijklmnop1234",
    "",
)
WEATHER = {"type": "function", "function": {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}  # fmt: skip


def whole(message, reason="stop"):
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
    return read_response(orjson.dumps({"model": "v", "choices": [choice]}), "v", TRACE)[0]


def streamed(deltas, reason="stop"):
    reader = StreamReader("v", TRACE, include_usage=False)
    for delta in deltas:
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        reader.feed(b"data: " + orjson.dumps({"model": "v", "choices": [choice]}) + b"\n\n")
    end = {"index": 0, "delta": {}, "finish_reason": reason}
    reader.feed(b"data: " + orjson.dumps({"model": "v", "choices": [end]}) + b"\n\n")
    return reader.finish()


def stored(answer, messages=({"role": "user", "content": "weather in Rome?"},), tools=(WEATHER,)):
    value = {"model": "m", "messages": list(messages), "tools": list(tools)}
    return recorded("chat", value, answer)


def call_of(endpoint, value, answer):
    request = read_request(endpoint, orjson.dumps(value), {}, FieldRules(), IdentityRules())
    request.trace_id, request.purpose = TRACE, "live"
    call = Call(
        request, RouteChoice("m", "m-v1", "stable", "", ""), "default", 0.0,
        datetime(2026, 1, 2, tzinfo=UTC), f"00-{TRACE}-00f067aa0ba902b7-01",
        attempts=[EngineAttempt("m-v1", "stable", 0.0, status=200)],
    )  # fmt: skip
    call.answer = answer
    return call


def recorded(endpoint, value, answer, review=None):
    call = call_of(endpoint, value, answer)
    return InteractionRecorded.model_validate_json(
        event_json(call, 0.1, "2026-01-02T00:00:00Z", Redactor(), review=review)
    )


def test_streamed_tool_call():
    deltas = [
        {"tool_calls": [{"index": 0, "id": "call_1", "type": "function",
                         "function": {"name": "get_weather", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Rome"}'}}]},
    ]  # fmt: skip
    function = {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    message = {"content": None, "tool_calls": [
        {"id": "call_1", "type": "function", "function": function}]}  # fmt: skip
    event = stored(streamed(deltas, "tool_calls"))
    assert event == stored(whole(message, "tool_calls"))
    assert event.answer is not None
    (call,) = event.answer.tool_calls
    assert call.model_dump() == {
        "id": "call_1",
        "name": "get_weather",
        "arguments": '{"city":"Rome"}',
    }
    assert event.completion == '[{"name":"get_weather","arguments":{"city":"Rome"}}]'
    (tool,) = event.tools
    assert tool.name == "get_weather"


def text(rng, longest=6):
    return "".join(rng.choice(WORDS) + " " for _ in range(rng.randrange(longest)))


def arguments(rng):
    kind = rng.randrange(6)
    if kind == 0:
        return text(rng)
    if kind == 1:
        return rng.choice(["", "[1]", "null", "{", '{"a": NaN}', "{" * 2_000, '{"a": "\\ud800"}'])
    value = {text(rng, 2) or "k": rng.choice([text(rng), 4111111111111111, 1.50, 10**30, None, [{}]])
             for _ in range(rng.randrange(4))}  # fmt: skip
    return json_spaced(value, rng)


def json_spaced(value, rng):
    # Python's json, as orjson has no integers over 64 bits.
    import json

    return json.dumps(value, indent=rng.choice([None, 2]), ensure_ascii=rng.random() < 0.5)


def message_of(rng):
    message = {"content": text(rng) if rng.random() < 0.6 else None}
    if rng.random() < 0.6:
        message["tool_calls"] = [
            {"id": f"call_{number}", "type": "function",
             "function": {"name": rng.choice(["get_weather", "aa"]), "arguments": arguments(rng)}}
            for number in range(rng.randrange(1, 4))
        ]  # fmt: skip
    elif rng.random() < 0.2:
        message["function_call"] = {"name": "old", "arguments": arguments(rng)}
    if rng.random() < 0.4:
        message[rng.choice(["reasoning", "reasoning_content"])] = text(rng)
    if rng.random() < 0.1:
        message["refusal"] = text(rng)
    return message


def pieces(rng, given):
    at = 0
    while at < len(given):
        size = rng.randrange(1, max(2, len(given) // 2))
        yield given[at : at + size]
        at += size


def deltas_of(rng, message):
    """The message as an engine may stream it; pieces of parallel calls come mixed."""
    yield {"role": "assistant", "content": ""}
    for name in ("reasoning", "reasoning_content", "content", "refusal"):
        for piece in pieces(rng, message.get(name) or ""):
            yield {name: piece}
    repeats = rng.random() < 0.3
    queues = []
    for index, call in enumerate(message.get("tool_calls", ())):
        function = call["function"]
        head = {"index": index, "id": call["id"], "type": "function",
                "function": {"name": function["name"], "arguments": ""}}  # fmt: skip
        queue = [head]
        for piece in pieces(rng, function["arguments"]):
            more = {"name": function["name"]} if repeats else {}
            queue.append({"index": index, "function": {"arguments": piece, **more}})
        queues.append(queue)
    yield from ({"tool_calls": [queue.pop(0)]} for queue in queues)
    while left := [queue for queue in queues if queue]:
        yield {"tool_calls": [rng.choice(left).pop(0)]}
    if "function_call" in message:
        yield {"function_call": {"name": message["function_call"]["name"]}}
        for piece in pieces(rng, message["function_call"]["arguments"]):
            yield {"function_call": {"arguments": piece}}


def test_a_thousand_answers_are_stored_alike_streamed_and_whole():
    rng = random.Random(20261125)
    kinds = {"calls": 0, "unparsed": 0, "reasoning": 0, "refusal": 0, "text": 0}
    for _ in range(1_000):
        message = message_of(rng)
        history = [
            {"role": "user", "content": text(rng)},
            {"role": "assistant", **message_of(rng)},
            {"role": "tool", "tool_call_id": "call_0", "content": text(rng)},
        ]
        event = stored(streamed(deltas_of(rng, message)), history)
        assert event == stored(whole(message), history)
        assert "bob@example.com" not in event.model_dump_json()
        turn = event.answer
        kinds["text"] += turn is None
        if turn is not None:
            kinds["calls"] += bool(turn.tool_calls)
            kinds["unparsed"] += any(call.unparsed for call in turn.tool_calls)
            kinds["reasoning"] += bool(turn.reasoning)
            kinds["refusal"] += bool(turn.refusal)
    assert min(kinds.values()) > 40, kinds


class CityDetector:
    """Finds the city in texts, and cannot check those with the other one."""

    def __init__(self):
        self.asked = 0

    async def find(self, texts):
        self.asked += len(texts)
        return [
            None if "日本" in text else [
                DetectedSpan("LOCATION", found.start(), found.end(), 0.9)
                for found in re.finditer("Rome", text)
            ]
            for text in texts
        ]  # fmt: skip

    def unchecked(self):
        return None


async def test_with_a_detector_too_answers_are_stored_alike_streamed_and_whole():
    rng = random.Random(20261127)
    detector, withheld, located = CityDetector(), 0, 0
    for _ in range(300):
        message = message_of(rng)
        value = {"model": "m", "messages": [{"role": "user", "content": text(rng)}]}
        first, second = [
            await reviewed(
                detector,
                Review(Redactor().text),
                partial(recorded, "chat", value, answer),
            )
            for answer in (streamed(deltas_of(rng, message)), whole(message))
        ]
        assert first == second
        kept = first.model_dump_json()
        assert "Rome" not in kept.replace("get_weather", "")
        assert "日本" not in kept
        withheld += "unchecked" in first.untrainable
        located += "location" in first.redactions
        assert ("[UNCHECKED]" in kept) is ("unchecked" in first.untrainable)
    assert min(withheld, located) > 40, (withheld, located)
    assert detector.asked > 300


def items_of(message):
    """A chat message as items of the Responses API."""
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    if reasoning:
        yield {"type": "reasoning", "id": "r", "summary": [], "content": [
            {"type": "reasoning_text", "text": reasoning}]}  # fmt: skip
    texts = {"output_text": message.get("content"), "refusal": message.get("refusal")}
    parts = [{"type": kind, "refusal" if kind == "refusal" else "text": given}
             for kind, given in texts.items() if given]  # fmt: skip
    if parts:
        yield {"type": "message", "id": "m", "role": "assistant", "content": parts}
    for call in message.get("tool_calls", ()):
        yield {"type": "function_call", "call_id": call["id"], **call["function"]}


def events_of(rng, value):
    """The answer as an engine may stream it: texts and arguments in pieces, then the whole."""
    yield {"type": "response.created", "response": {**value, "output": []}}
    for index, item in enumerate(value["output"]):
        place = {"output_index": index}
        yield {"type": "response.output_item.added", **place, "item": {**item, "content": []}}
        parts = [*(item.get("content") or ()), {"type": "arguments", "text": item.get("arguments")}]
        for part in parts:
            for piece in pieces(rng, part.get("text") or part.get("refusal") or ""):
                yield {"type": f"response.{part['type']}.delta", **place, "delta": piece}
        yield {"type": "response.output_item.done", **place, "item": item}
    yield {"type": "response.completed", "response": value}


def test_a_thousand_answers_of_the_responses_api_are_stored_as_those_of_chat():
    rng = random.Random(20261126)
    for _ in range(1_000):
        message, before = (
            {name: one for name, one in message_of(rng).items() if name != "function_call"}
            for _ in range(2)
        )
        asked, result = text(rng) or "?", text(rng)
        turns = [
            {"role": "user", "content": asked},
            {"role": "assistant", **before},
            {"role": "tool", "tool_call_id": "call_0", "content": result},
        ]
        sent = [
            {"role": "user", "content": asked},
            *items_of(before),
            {"type": "function_call_output", "call_id": "call_0", "output": result},
        ]
        tools = [{"type": "function", **WEATHER["function"]}]
        request = {"model": "m", "input": sent, "tools": tools}
        value = {"id": "resp_1", "status": "completed", "output": list(items_of(message))}
        reader = ResponsesReader("v", TRACE, include_usage=False)
        data = b"".join(
            b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event))
            for event in events_of(rng, value)
        )
        step = rng.randrange(1, 400)
        for at in range(0, len(data), step):
            reader.feed(data[at : at + step])
        event = recorded("responses", request, reader.finish())
        assert event == recorded(
            "responses", request, read_responses_answer(orjson.dumps(value), "v", TRACE)[0]
        )
        reason = "tool_calls" if message.get("tool_calls") else "stop"
        chat = stored(whole(message, reason), turns)
        same = ("answer", "completion", "tools", "finish_reason", "untrainable")
        assert [getattr(event, name) for name in same] == [getattr(chat, name) for name in same]
        if list(items_of(before)):
            assert event.messages == chat.messages


def test_calls_without_an_index_are_told_apart_by_id():
    deltas = [
        {"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}]},
        {"tool_calls": [{"function": {"arguments": "}"}}]},
        {"tool_calls": [{"id": "b", "function": {"name": "g", "arguments": "{}"}}]},
    ]
    answer = stored(streamed(deltas)).answer
    assert answer is not None
    assert [(call.id, call.name) for call in answer.tool_calls] == [("a", "f"), ("b", "g")]


@pytest.mark.parametrize("calls", [1, MAX_CALLS + 20])
def test_a_stream_without_an_end_stays_bounded(calls):
    piece = "x" * 50_000
    answer = streamed(
        {"content": piece, "reasoning": piece,
         "tool_calls": [{"index": number % calls, "function": {"name": "f", "arguments": piece[:900]}}]}
        for number in range(300)
    )  # fmt: skip
    kept = answer.more["tool_calls"]
    assert len(kept) == min(calls, MAX_CALLS)
    assert len(answer.completion) < MAX_READ + len(piece)
    assert len(answer.more["reasoning"]) < MAX_READ + len(piece)
    assert all(len(call["function"]["arguments"]) < MAX_READ + len(piece) for call in kept)
    assert "too_large" in stored(answer).untrainable
