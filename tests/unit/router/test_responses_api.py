"""The Responses API: checked, stored as chat is, and the same whether streamed or whole."""

from __future__ import annotations

from typing import Any

import openai
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.stub_engine import TEXT
from services.router.errors import InvalidRequest
from services.router.fields import FieldRules
from services.router.identity import IdentityRules
from services.router.proxy import Deadlines
from services.router.request import ChatRequest, read_request
from services.router.response import UnreadableResponse
from services.router.responses_api import ResponsesReader, item_turns, read_responses_answer
from tests.unit.router.conftest import GatewayHarness

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def read(**body: Any) -> ChatRequest:
    value = {"model": "m", "input": "hi", **body}
    return read_request("responses", orjson.dumps(value), {}, FieldRules(), IdentityRules())


def message(text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {"type": "message", "id": "m1", "role": "assistant", "content": content}


CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Rome"}'}
THOUGHT = {"type": "reasoning", "id": "r1", "summary": [{"type": "summary_text", "text": "Hm."}]}


def test_items_become_the_turns_of_chat() -> None:
    request = read(
        instructions="Be kind.",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "Weather in Rome?"}]},
            THOUGHT,
            CALL,
            {"type": "function_call_output", "call_id": "c1", "output": "21 °C"},
            message("It is 21 °C."),
            {"role": "user", "content": "Thanks"},
        ],
    )
    calls = [{"id": "c1", "name": "weather", "arguments": '{"city":"Rome"}'}]
    assert request.turns() == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Weather in Rome?"},
        {"role": "assistant", "content": "", "tool_calls": calls, "reasoning": "Hm."},
        {"role": "tool", "content": "21 °C", "tool_call_id": "c1"},
        {"role": "assistant", "content": "It is 21 °C."},
        {"role": "user", "content": "Thanks"},
    ]
    assert request.untrainable(request.turns()) == []


def test_two_answers_in_a_row_stay_two_turns() -> None:
    assert [turn["content"][0]["text"] for turn in item_turns([message("A"), message("B")])] == [
        "A",
        "B",
    ]


def test_an_image_and_hosted_calls_are_untrainable() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    request = read(
        input=[
            {"role": "user", "content": [image]},
            {"type": "web_search_call", "id": "w1", "status": "completed"},
        ]
    )
    assert request.untrainable(request.turns()) == ["media", "other_items"]


def test_pictures_in_their_flat_form_have_digests_of_their_own() -> None:
    def part_of(url: str) -> dict[str, Any]:
        item = {"role": "user", "content": [{"type": "input_image", "image_url": url}]}
        return read(input=[item]).turns()[0]["parts"][0]

    held = part_of("data:image/png;base64,iVBORw0KGgo=")
    assert (held["size"], held["media_type"]) == (8, "image/png")
    named = {part_of(f"https://example.com/{name}.png")["sha256"] for name in ("a", "b")}
    assert len(named | {held["sha256"]}) == 3


def test_format_and_tools_are_kept_and_nothing_is_stored_at_the_engine() -> None:
    tool = {"type": "function", "name": "weather", "parameters": {}}
    form = {"type": "json_schema", "name": "n", "schema": {}}
    request = read(text={"format": form}, tools=[tool], store=False)
    assert orjson.loads(request.response_format()) == form
    assert request.tools == [tool]
    assert orjson.loads(request.upstream_body("v"))["store"] is False
    assert request.ignored == ()
    assert read(store=True).ignored == ("store",)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [1]}, "input"),
        ({"input": [{"role": "user"}]}, "input"),
        ({"input": [{"content": "no role"}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"instructions": ["x"]}, "instructions"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "mcp", "server_url": "http://inside"}]}, "tools"),
        ({"tools": "all"}, "tools"),
        ({"cache_salt": "x"}, "cache_salt"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_field(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        read(**body)
    assert raised.value.param == param


def answer(items: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    usage = {"input_tokens": 3, "output_tokens": 5, "total_tokens": 8}
    value = {"id": "resp_1", "object": "response", "model": "v", "output": items, "usage": usage}
    return {**value, "status": "completed", **more}


def events_of(value: dict[str, Any]) -> bytes:
    """The stream of an answer: its texts in pieces of three characters, then the whole."""
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**value, "output": []}}
    ]
    for item in value["output"]:
        text = item["content"][0]["text"] if item["type"] == "message" else ""
        kind = "response.output_text.delta"
        events += [{"type": kind, "delta": text[at : at + 3]} for at in range(0, len(text), 3)]
    events.append({"type": f"response.{value['status']}", "response": value})
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event))
        for event in events
    )


ITEMS = st.lists(st.one_of(st.text().map(message), st.just(CALL), st.just(THOUGHT)), max_size=5)


@given(items=ITEMS, cut=st.booleans(), step=st.integers(1, 200))
def test_an_answer_is_the_same_streamed_or_whole(
    items: list[dict[str, Any]], cut: bool, step: int
) -> None:
    more = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    value = answer(items, **(more if cut else {}))
    whole, body = read_responses_answer(orjson.dumps(value), "v1", TRACE)
    reader = ResponsesReader("v1", TRACE, include_usage=False)
    data = events_of(value)
    sent = b"".join(reader.feed(data[at : at + step]) for at in range(0, len(data), step))
    assert reader.done
    assert reader.finish() == whole
    assert (whole.prompt_tokens, whole.completion_tokens, whole.engine_id) == (3, 5, "resp_1")
    assert whole.finish_reason == ("length" if cut else "tool_calls" if CALL in items else "stop")
    assert orjson.loads(body)["id"] == TRACE
    last = orjson.loads(reader.last.partition(b"data: ")[2])
    assert (last["response"]["id"], last["response"]["model"]) == (TRACE, "v1")
    assert b"resp_1" not in sent


def test_a_versions_system_prompt_does_not_come_back() -> None:
    value = answer([message("A")], instructions="The operator's own.", model="base")
    _, whole = read_responses_answer(orjson.dumps(value), "m", TRACE)
    reader = ResponsesReader("m", TRACE, include_usage=False)
    streamed = reader.feed(events_of(value)) + reader.last
    for shown in (whole, streamed):
        assert b"operator" not in shown
        assert b'"instructions":null' in shown


def test_a_failure_of_the_engine_is_one() -> None:
    failed = answer([], status="failed", error={"code": "server_error", "message": "no memory"})
    with pytest.raises(UnreadableResponse, match="no memory"):
        read_responses_answer(orjson.dumps(failed), "v", TRACE)
    reader = ResponsesReader("v", TRACE, include_usage=False)
    reader.feed(b"data: " + orjson.dumps({"type": "response.failed", "response": failed}) + b"\n\n")
    assert (reader.failure, reader.done) == ("no memory", False)
    for broken in (b"[]", b"{}", b'{"output":1}', b"no JSON"):
        with pytest.raises(UnreadableResponse):
            read_responses_answer(broken, "v", TRACE)


async def test_the_openai_client_gets_its_responses(bench: GatewayHarness) -> None:
    await bench.start()
    bench.route()
    async with openai.AsyncOpenAI(
        base_url=f"{bench.url}/v1", api_key="none", max_retries=0
    ) as client:
        whole = await client.responses.create(model="m", input="hi")
        assert (whole.output_text, whole.model) == (TEXT, "m-v1.0")
        events = [event async for event in await client.responses.create(
            model="m", input="hi", stream=True)]  # fmt: skip
        last = events[-1]
        assert last.type == "response.completed"
        assert last.response.output_text == TEXT
        with pytest.raises(openai.BadRequestError) as raised:
            await client.responses.create(model="m", input="hi", previous_response_id="resp_1")
        assert raised.value.param == "previous_response_id"
    first, second = bench.events()
    assert {first.trace_id, second.trace_id} == {whole.id, last.response.id}
    assert first.completion == second.completion == TEXT
    assert (first.endpoint, first.api, first.finish_reason) == ("chat", "responses", "stop")
    assert first.messages == second.messages


@pytest.mark.parametrize("engine", ["m-torn", "m-stall"])
async def test_a_stream_that_breaks_ends_with_an_error_event(
    bench: GatewayHarness, engine: str
) -> None:
    await bench.start(deadlines=Deadlines(answer_s=1.5, stream_s=4.0))
    bench.route(stable=engine)
    body = {"model": "m", "input": "hi", "stream": True}
    response = await bench.client.post("/v1/responses", json=body)
    last = response.text.strip().split("\n\n")[-1]
    assert last.startswith("event: error\n")
    error = orjson.loads(last.partition("data: ")[2])
    assert (error["type"], error["code"]) == (
        "error",
        "engine_timeout" if engine == "m-stall" else "engine_unavailable",
    )
    (event,) = bench.events()
    assert TEXT.startswith(event.completion)
    assert event.completion
