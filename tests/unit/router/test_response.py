from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.stub_engine import TEXT, chat_body, stream_events
from services.router.response import StreamReader, UnreadableResponse, read_error, read_response

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_an_answer_is_read_and_passed_on_under_its_trace_id():
    body = chat_body("m-v1.0", "Hello.")
    answer, passed = read_response(body, "m-v1.0", TRACE)
    assert orjson.loads(passed) == {**orjson.loads(body), "id": TRACE}
    assert answer.engine_id == "chatcmpl-stub"
    assert (answer.completion, answer.finish_reason) == ("Hello.", "stop")
    assert (answer.prompt_tokens, answer.completion_tokens) == (12, 14)


def test_the_body_names_the_version_that_answered():
    _, passed = read_response(chat_body("something/else", "Hello."), "m-v1.0", TRACE)
    assert orjson.loads(passed)["model"] == "m-v1.0"


def test_a_tool_call_is_kept_apart_from_the_text():
    call = {"id": "1", "type": "function", "function": {"name": "track", "arguments": "{}"}}
    choice = {"message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}
    answer, _ = read_response(orjson.dumps({"model": "v", "choices": [choice]}), "v", TRACE)
    assert answer.completion == ""
    assert answer.turn() == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "1", "name": "track", "arguments": "{}"}],
    }


@pytest.mark.parametrize("field", ["content", "reasoning", "reasoning_content", "refusal"])
def test_the_first_token_of_any_kind_counts(field):
    event = {"model": "v", "choices": [{"index": 0, "delta": {field: "a"}}]}
    reader, _ = pass_through(b"data: " + orjson.dumps(event) + b"\n\n", [])
    assert reader.tokens == 1


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"{}", b'{"choices":[]}', b'{"choices":[3]}', b'{"choices":{}}']
)
def test_an_unreadable_answer(body):
    with pytest.raises(UnreadableResponse):
        read_response(body, "v", TRACE)


def test_an_answer_that_a_stopping_engine_gave_up_is_a_failure():
    choice = {"index": 0, "message": {"content": "Your par"}, "finish_reason": "abort"}
    with pytest.raises(UnreadableResponse, match="gave the answer up"):
        read_response(orjson.dumps({"model": "v", "choices": [choice]}), "v", TRACE)
    event = {"model": "v", "choices": [{"index": 0, "delta": {}, "finish_reason": "abort"}]}
    with pytest.raises(UnreadableResponse, match="gave the answer up"):
        pass_through(b"data: " + orjson.dumps(event) + b"\n\n", [])


@pytest.mark.parametrize("engine_id", [None, 7, "a\nb", "x" * 201])
def test_an_engine_id_that_no_event_can_hold_is_left_out(engine_id):
    choice = {"message": {"content": "a"}}
    answer, passed = read_response(orjson.dumps({"id": engine_id, "choices": [choice]}), "v", TRACE)
    assert answer.engine_id == ""
    assert orjson.loads(passed)["id"] == TRACE


def test_an_answer_too_deep_to_pass_on_is_the_engines_fault():
    body = b'{"choices":[{"message":{"content":"a"},"x":' + b"[" * 300 + b"]" * 300 + b"}]}"
    with pytest.raises(UnreadableResponse, match="cannot be passed on"):
        read_response(body, "v", TRACE)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"too long","type":"BadRequestError","code":400}}', "too long"),
        (b'{"object":"error","message":"too long"}', "too long"),
        (b"<html>", "the engine refused the request with status 400"),
        (b"[]", "the engine refused the request with status 400"),
    ],
)
def test_engine_errors_take_openais_shape(body, message):
    said, shaped = read_error(400, body)
    assert said == message
    error = orjson.loads(shaped)["error"]
    assert error["message"] == message
    assert set(error) == {"message", "type", "param", "code"}


def pass_through(data, sizes, include_usage=False, version="v"):
    reader = StreamReader(version, TRACE, include_usage)
    out = b""
    at = 0
    for size in [*sizes, len(data)]:
        out += reader.feed(data[at : at + size])
        at += size
    return reader, out


@given(st.lists(st.integers(1, 300), max_size=60), st.booleans(), st.booleans())
def test_however_a_stream_is_cut_it_reads_the_same(sizes, include_usage, carriage_returns):
    data = b"".join(stream_events("v", TEXT, 16))
    if carriage_returns:
        data = data.replace(b"\n", b"\r\n")
    reader, out = pass_through(data, sizes, include_usage)
    answer = reader.finish()
    assert reader.done
    assert answer.completion == TEXT
    assert answer.finish_reason == "stop"
    assert answer.completion_tokens > 0
    events = [orjson.loads(line[6:]) for line in out.split(b"\n\n") if line]
    assert {event["id"] for event in events} == {TRACE}
    assert answer.engine_id == "chatcmpl-stub"
    assert (
        "".join(e["choices"][0]["delta"].get("content", "") for e in events if e["choices"]) == TEXT
    )
    assert any("usage" in event for event in events) is include_usage
    assert b"[DONE]" not in out


def test_a_null_usage_on_every_chunk_is_hidden_too():
    event = {"model": "v", "choices": [{"index": 0, "delta": {"content": "a"}}], "usage": None}
    _, out = pass_through(b"data: " + orjson.dumps(event) + b"\n\n", [])
    assert "usage" not in orjson.loads(out[6:])


def test_a_stream_names_the_version_that_answered():
    _, out = pass_through(b"".join(stream_events("other", TEXT, 4)), [], version="v")
    assert {orjson.loads(line[6:])["model"] for line in out.split(b"\n\n") if line} == {"v"}


def test_of_several_choices_the_first_is_kept():
    def event(index, text):
        choice = {"index": index, "delta": {"content": text}, "finish_reason": None}
        return b"data: " + orjson.dumps({"model": "v", "choices": [choice]}) + b"\n\n"

    reader, _ = pass_through(event(0, "a") + event(1, "x") + event(0, "b"), [])
    assert reader.finish().completion == "ab"


@pytest.mark.parametrize(
    "event",
    [b'{"error":{"message":"out of memory"}}', b'{"object":"error","message":"out of memory"}'],
)
def test_an_error_event_ends_the_stream(event):
    reader, out = pass_through(b"data: " + event + b"\n\ndata: [DONE]\n\n", [])
    assert reader.failure == "out of memory"
    assert not reader.done
    assert out == b""


def test_comments_and_other_fields_are_left_out():
    reader, out = pass_through(b": ping\n\nevent: x\n\ndata: [DONE]\n\n", [])
    assert reader.done
    assert out == b""


@pytest.mark.parametrize("event", [b"data: {", b"data: 3"])
def test_an_unreadable_event(event):
    with pytest.raises(UnreadableResponse):
        StreamReader("v", TRACE, include_usage=False).feed(event + b"\n\n")


def test_an_event_without_end_is_bounded():
    reader = StreamReader("v", TRACE, include_usage=False)
    for _ in range(4):
        reader.feed(b"x" * 1_000_000)
    with pytest.raises(UnreadableResponse):
        reader.feed(b"x" * 1_000_000)
