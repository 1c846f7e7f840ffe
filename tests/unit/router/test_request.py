from __future__ import annotations

import base64
import hashlib

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.errors import InvalidRequest
from services.router.fields import Endpoint, FieldRules
from services.router.identity import IdentityRules
from services.router.request import OPENING_CHARACTERS, OPENING_PARTS, read_request
from services.router.traces import TraceIds
from shared.observability.spans import Spans

TURNS = [{"role": "user", "content": "hi"}]


def read(value, endpoint: Endpoint = "chat", headers=None):
    body = value if isinstance(value, bytes) else orjson.dumps(value)
    return read_request(endpoint, body, headers or {}, FieldRules(), IdentityRules())


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[" * 5000, None),
        (b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}', None),
        ([], None),
        ({}, "model"),
        ({"model": 3, "messages": TURNS}, "model"),
        ({"model": "", "messages": TURNS}, "model"),
        ({"model": "m"}, "messages"),
        ({"model": "m", "messages": "hi"}, "messages"),
        ({"model": "m", "messages": []}, "messages"),
        ({"model": "m", "messages": ["hi"]}, "messages"),
        ({"model": "m", "messages": [{"content": "hi"}]}, "messages"),
        ({"model": "m", "messages": [{"role": "x" * 33, "content": "hi"}]}, "messages"),
        ({"model": "m", "messages": [{"role": "user", "content": 3}]}, "messages"),
        ({"model": "m", "messages": [{"role": "user", "content": ["hi"]}]}, "messages"),
        ({"model": "m", "messages": TURNS, "stream": "yes"}, "stream"),
        ({"model": "m", "messages": TURNS, "user": 7}, "user"),
        ({"model": "m", "messages": TURNS, "user": "a\nb"}, "user"),
        ({"model": "m", "messages": TURNS, "user": "a" * 201}, "user"),
        ({"model": "m", "messages": TURNS, "metadata": []}, "metadata"),
        ({"model": "m", "messages": TURNS, "metadata": {"a": 1}}, "metadata"),
        ({"model": "m", "messages": TURNS, "metadata": {"a" * 65: ""}}, "metadata"),
        ({"model": "m", "messages": TURNS, "metadata": {"locale": "x" * 201}}, "metadata.locale"),
        ({"model": "m", "messages": TURNS, "metadata": dict.fromkeys("abcdefghijklmnopq", "")},
         "metadata"),
        ({"model": "m", "messages": TURNS, "stream_options": {}}, "stream_options"),
        ({"model": "m", "messages": TURNS, "stream": True, "stream_options": 1}, "stream_options"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(value, param):
    with pytest.raises(InvalidRequest) as raised:
        read(value)
    assert raised.value.param == param
    error = orjson.loads(raised.value.body())["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.mark.parametrize("prompt", [None, "", [], 3, [1, "a"], {}])
def test_completions_need_a_prompt(prompt):
    with pytest.raises(InvalidRequest) as raised:
        read({"model": "m", "prompt": prompt}, "completions")
    assert raised.value.param == "prompt"


@pytest.mark.parametrize(
    ("prompt", "text"),
    [("hi", "hi"), (["a", "b"], "a\nb"), ([1, 2], "[1,2]"), ([[1], [2]], "[[1],[2]]")],
)
def test_a_prompt_is_one_user_turn(prompt, text):
    request = read({"model": "m", "prompt": prompt}, "completions")
    assert request.turns() == [{"role": "user", "content": text}]


def test_text_parts_become_text():
    parts = [{"type": "text", "text": "look"}, {"type": "text", "text": "here"}]
    request = read({"model": "m", "messages": [{"role": "user", "content": parts}]})
    assert request.turns() == [{"role": "user", "content": "look\nhere"}]
    assert request.untrainable(request.turns()) == []
    assert orjson.loads(request.upstream_body("v"))["messages"][0]["content"] == parts


def picture(data: str) -> dict:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


@pytest.mark.parametrize(
    ("endpoint", "name", "first", "other"),
    [
        ("chat", "messages", [{"role": "system", "content": "s"}, *TURNS], [TURNS[0], TURNS[0]]),
        ("chat", "messages", [{"role": "user", "content": [picture("a")]}, *TURNS], TURNS),
        ("responses", "input", [TURNS[0], {"type": "reasoning"}], TURNS),
    ],
)
def test_a_conversations_opening_stays_while_it_goes_on(endpoint, name, first, other):
    def opening(value: object) -> bytes:
        return read({"model": "m", name: value}, endpoint).opening()

    assert opening([*first, {"role": "assistant", "content": "a third turn"}]) == opening(first)
    assert opening(other) != opening(first)


@pytest.mark.parametrize(
    ("endpoint", "name", "one", "other"),
    [
        ("completions", "prompt", "once upon", "twice"),
        ("completions", "prompt", [1, 2, 3], [1, 2, 4]),
        ("embeddings", "input", ["a", "b", "c"], ["a", "b", "d"]),
    ],
)
def test_prompts_have_openings(endpoint, name, one, other):
    openings = [read({"model": "m", name: value}, endpoint).opening() for value in (one, other)]
    assert openings[0] != openings[1]


def test_an_opening_is_bounded_and_hashes_no_picture(monkeypatch):
    monkeypatch.setattr(hashlib, "sha256", None)
    content = [picture("a" * 20_000)] * 100
    request = read({"model": "m", "messages": [{"role": "user", "content": content}]})
    assert len(request.opening()) < OPENING_PARTS * (OPENING_CHARACTERS + 100)
    deep: list = []
    for _ in range(200):
        deep = [deep]
    assert len(read({"model": "m", "messages": TURNS, "system": deep}).opening()) < 200


def test_an_image_is_kept_by_its_digest():
    png = b"\x89PNG picture"
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": url}}]
    request = read({"model": "m", "messages": [{"role": "user", "content": parts}]})
    (turn,) = request.turns()
    assert turn == {
        "role": "user",
        "content": "look\n[image]",
        "parts": [
            {"type": "text", "text": "look"},
            {
                "type": "image",
                "sha256": hashlib.sha256(png).hexdigest(),
                "size": len(png),
                "media_type": "image/png",
            },
        ],
    }
    assert request.untrainable([turn]) == ["media"]
    assert orjson.loads(request.upstream_body("v"))["messages"][0]["content"] == parts


@pytest.mark.parametrize(
    ("endpoint", "fields", "reasons"),
    [
        ("chat", {"n": 2}, ["several_choices"]),
        ("chat", {"n": 1, "echo": False}, []),
        ("chat", {"continue_final_message": True}, ["continued"]),
        ("chat", {"add_generation_prompt": False}, ["continued"]),
        ("chat", {"prompt": [1]}, []),
        ("completions", {"prompt": "a", "echo": True}, ["echo"]),
        ("completions", {"prompt": ["a"]}, []),
        ("completions", {"prompt": ["a", "b"]}, ["several_prompts"]),
        ("completions", {"prompt": [1, 2], "n": 2}, ["several_choices", "token_ids"]),
        ("completions", {"prompt": [[1], [2]]}, ["token_ids"]),
    ],
)
def test_why_an_answer_is_untrainable(endpoint, fields, reasons):
    request = read({"model": "m", "messages": TURNS, **fields}, endpoint)
    assert request.untrainable(request.turns()) == reasons


def test_the_engine_sees_only_what_it_may():
    request = read(
        {
            "model": "m",
            "messages": TURNS,
            "temperature": 0.5,
            "priority": None,
            "store": True,
            "user": "bob",
            "metadata": {"category": "billing"},
        }
    )
    assert orjson.loads(request.upstream_body("m-v1.0")) == {
        "model": "m-v1.0",
        "messages": TURNS,
        "temperature": 0.5,
    }
    assert request.ignored == ("store",)


@pytest.mark.parametrize("asked", [True, False])
def test_streams_always_bring_usage(asked):
    options = {"stream_options": {"include_usage": asked}}
    request = read({"model": "m", "messages": TURNS, "stream": True, **options})
    assert request.include_usage is asked
    assert orjson.loads(request.upstream_body("v"))["stream_options"] == {"include_usage": True}


def test_who_asks_and_where_from():
    request = read(
        {
            "model": "m",
            "messages": TURNS,
            "metadata": {"locale": "de", "session_id": "s2", "ticket": "7"},
        },
        headers={b"x-ratchet-user": "Zoë".encode(), b"x-ratchet-session": b"s1"},
    )
    assert (request.user, request.session) == ("Zoë", "s1")
    assert request.context == {"session_id": "s1", "locale": "de", "labels": {"ticket": "7"}}


def test_the_body_names_the_user_before_the_header():
    headers = {b"x-ratchet-user": b"header"}
    assert read({"model": "m", "messages": TURNS, "user": "body"}, headers=headers).user == "body"


def test_only_known_purposes():
    assert (
        read(
            {"model": "m", "messages": TURNS}, headers={b"x-ratchet-purpose": b"comparison"}
        ).purpose
        == "comparison"
    )
    with pytest.raises(InvalidRequest):
        read({"model": "m", "messages": TURNS}, headers={b"x-ratchet-purpose": b"live"})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
FIELDS = ("model", "messages", "prompt", "stream", "user", "metadata", "stream_options")


@given(
    st.dictionaries(st.sampled_from(FIELDS), json_values), st.sampled_from(["chat", "completions"])
)
def test_any_json_is_read_or_refused(value, endpoint):
    try:
        request = read(value, endpoint)
    except InvalidRequest:
        return
    request.untrainable(request.turns())
    request.response_format()
    orjson.loads(request.upstream_body("v"))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body):
    with pytest.raises(InvalidRequest):
        read(body)


def test_a_body_too_deep_for_the_engine_is_the_clients_error():
    with pytest.raises(InvalidRequest, match="cannot go on to an engine"):
        read(
            orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]})[:-1]
            + b',"tools":'
            + b"[" * 300
            + b"]" * 300
            + b"}"
        )


def test_trace_ids_are_distinct():
    traces = TraceIds(Spans())
    taken = {traces.take() for _ in range(2_000)}
    assert len(taken) == 2_000
    assert all(len(trace_id) == 32 for trace_id in taken)


def test_the_clients_trace_goes_on_with_a_new_span():
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    version, kept, new, flags = (
        TraceIds(Spans()).traceparent("a" * 32, f"00-{trace}-{span}-01".encode()).split("-")
    )
    assert (version, kept, flags) == ("00", trace, "01")
    assert new != span


@pytest.mark.parametrize("given", [None, b"", b"\xff nonsense", b"00-" + b"0" * 32 + b"-1-01"])
def test_without_a_clients_trace_the_request_is_its_own(given):
    assert TraceIds(Spans()).traceparent("a" * 32, given).split("-")[1] == "a" * 32
