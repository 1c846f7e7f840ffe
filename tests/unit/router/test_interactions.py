"""The event is plain JSON on the hot path; here it is read back with the contract's model."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.call import Call, EngineAttempt
from services.router.fields import FieldRules
from services.router.identity import IdentityRules
from services.router.interactions import MAX_EVENT_BYTES, Interactions, event_json
from services.router.request import read_request
from services.router.response import EngineResponse
from services.router.spool import Spool
from services.router.state import RouteChoice
from shared.contracts.events.base import MAX_TEXT, utc
from shared.contracts.events.interactions import AppliedSettings, InteractionRecorded, Outcome
from shared.kafka.envelope import decode, models_by_type
from shared.pseudonyms import UserPseudonyms
from shared.redaction import Redactor

STARTED = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
BEYOND_TEXT = {
    "api",
    "encrypted",
    "tools",
    "response_format",
    "answer",
    "untrainable",
    "applied_settings",
    "holdout",
    "output_filter",
}
"""Fields that only some events have."""
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def call_of(messages, *, completion="Hello.", more=None, attempts=None, **body):
    value = {"model": "m", "messages": messages, **body}
    request = read_request("chat", orjson.dumps(value), {}, FieldRules(), IdentityRules())
    request.trace_id, request.purpose = TRACE, "live"
    call = Call(
        request=request,
        choice=RouteChoice("m", "m-v1.1", "candidate", "r1", "m-v1.0"),
        tenant="default",
        started=0.0,
        started_at=STARTED,
        traceparent=f"00-{TRACE}-00f067aa0ba902b7-01",
    )
    call.attempts = attempts or [
        EngineAttempt("m-v1.1", "candidate", 0.0, status=200, duration_s=0.25)
    ]
    call.answer = EngineResponse(completion, "stop", 12, 14, more=more or {})
    return call


def event_of(call):
    value = event_json(call, 0.3, utc(call.started_at), Redactor())
    assert len(value) <= MAX_EVENT_BYTES
    event = InteractionRecorded.model_validate_json(value)
    written = set(orjson.loads(value))
    assert set(InteractionRecorded.model_fields) - BEYOND_TEXT <= written
    assert written <= set(InteractionRecorded.model_fields)
    return event


def test_all_that_happened_is_in_the_event():
    failed = EngineAttempt("m-v1.1", "candidate", 0.0, Outcome.server_error, 500, "broken", 0.1)
    retried = EngineAttempt(
        "m-v1.0", "fallback", 0.1, status=200, duration_s=0.2, first_token_at=0.15
    )
    event = event_of(
        call_of(
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
            attempts=[failed, retried],
            user="u1",
            metadata={"category": "billing", "locale": "de", "plan": "pro"},
        )
    )
    assert (event.trace_id, event.version, event.arm, event.rollout) == (
        TRACE,
        "m-v1.0",
        "fallback",
        "r1",
    )
    assert [attempt.outcome for attempt in event.attempts] == ["server_error", "ok"]
    assert event.attempts[0].error == "broken"
    assert event.prompt == "system: Be brief.\nuser: Hi"
    assert (event.completion, event.prompt_tokens, event.completion_tokens) == ("Hello.", 12, 14)
    assert (event.user_id, event.context.category, event.context.labels) == (
        "u1",
        "billing",
        {"plan": "pro"},
    )
    assert event.started_at == STARTED
    assert BEYOND_TEXT.isdisjoint(orjson.loads(event.to_json()))
    assert event.ttft_ms == pytest.approx(50)


def test_instructions_that_come_again_are_redacted_and_counted_again():
    for _ in range(2):
        event = event_of(call_of([{"role": "system", "content": "Write to bob@example.com."}]))
        assert event.prompt == "Write to [EMAIL]."
        assert event.redactions == {"email": 1}


def test_nothing_personal_is_kept():
    secret = "bob@example.com"
    failed = EngineAttempt(
        "m-v1.1", "candidate", 0.0, Outcome.server_error, 500, f"no {secret}", 0.1
    )
    event = event_of(
        call_of(
            [{"role": "user", "content": f"I am {secret}"}],
            completion=f"Hello {secret}",
            attempts=[failed],
            metadata={"note": secret, "category": secret},
        )
    )
    assert secret not in event.model_dump_json()
    assert event.redactions["email"] == 5


def test_nothing_personal_is_kept_beyond_text():
    secret = "bob@example.com"
    card = 4111111111111111
    arguments = orjson.dumps({"to": secret, secret: [secret, card]}).decode()
    call = {"id": "c1", "type": "function", "function": {"name": "send", "arguments": arguments}}
    broken = {"id": "c2", "function": {"name": "send", "arguments": f"to={secret}"}}
    event = event_of(
        call_of(
            [
                {"role": "user", "name": secret, "content": "Hi"},
                {"role": "assistant", "content": None, "tool_calls": [call, broken],
                 "reasoning": secret, "refusal": secret},
                {"role": "tool", "tool_call_id": "c1", "content": secret},
                {"role": "user", "content": [{"type": "text", "text": secret},
                                             {"type": "image_url", "image_url": "http://x/y"}]},
            ],
            completion="",
            more={"tool_calls": [call], "reasoning": secret, "refusal": secret},
            tools=[{"type": "function", "function": {
                "name": "send", "description": secret,
                "parameters": {"type": "object", "description": secret}}}],
            response_format={"type": "json_schema", "description": secret},
        )
    )  # fmt: skip
    stored = event.model_dump_json()
    assert secret not in stored
    assert str(card) not in stored
    assert event.answer is not None
    assert orjson.loads(event.answer.tool_calls[0].arguments) == {
        "to": "[EMAIL]",
        "[EMAIL]": ["[EMAIL]", "[CARD]"],
    }
    assert event.completion.startswith('[{"name":"send","arguments":{"to":"[EMAIL]"')


def test_tool_turns_in_history():
    turns = [
        {"role": "user", "content": "Weather in Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": "21 C"},
    ]  # fmt: skip
    event = event_of(call_of(turns, completion="It is 21 C."))
    question, called, result = event.messages
    assert question.is_text
    (call,) = called.tool_calls
    assert (called.content, call.id, call.name, call.arguments) == ("", "c1", "get_weather", "{}")
    assert (result.role, result.tool_call_id, result.content) == ("tool", "c1", "21 C")
    assert (event.answer, event.untrainable) == (None, ())


@pytest.mark.parametrize("size", [10_000, 99_999, 300_000])
def test_large_tools_fit_the_contract_and_the_brokers(size):
    tool = {"type": "function", "function": {
        "name": "t", "description": "\1" * size, "parameters": {"x": "\1" * size}}}  # fmt: skip
    call = {
        "id": "c",
        "function": {"name": "t", "arguments": orjson.dumps({"x": "é" * size}).decode()},
    }
    event = event_of(
        call_of([{"role": "user", "content": "Hi"}], more={"tool_calls": [call] * 5}, tools=[tool])
    )
    assert ("too_large" in event.untrainable) is (size > 10_000)
    assert event.answer is not None
    assert event.answer.tool_calls[0].unparsed is (size > 10_000)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["user", "assistant"]),
            st.sampled_from("aé\0🙂\\"),
            st.integers(0, 400_000),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 300_000),
)
def test_any_size_fits_the_contract_and_the_brokers(turns, completion_size):
    messages = [{"role": role, "content": char * size} for role, char, size in turns]
    event = event_of(call_of(messages, completion="\1" * completion_size))
    assert all(len(turn.content) <= MAX_TEXT for turn in event.messages)


def test_many_empty_turns_fit():
    event = event_of(call_of([{"role": "user", "content": ""}] * 50_000))
    assert len(event.messages) == 1_000


def test_of_a_long_conversation_the_end_is_kept():
    messages = [{"role": "user", "content": "x" * 90_000}, {"role": "assistant", "content": "y" * 90_000},
                {"role": "user", "content": "the question"}]  # fmt: skip
    event = event_of(call_of(messages))
    assert event.messages[-1].content == "the question"
    assert event.messages[-2].content == "y" * 90_000
    assert event.untrainable == ("too_large",)


def test_the_spool_gets_a_readable_cloud_event(tmp_path):
    spool = Spool(tmp_path, limit_bytes=1_000_000)
    interactions = Interactions(spool, Redactor())
    interactions.record(call_of([{"role": "user", "content": "Hi"}]), 0.3)
    (record,), _ = spool.batch()
    event = decode(record.headers, record.value, models_by_type(InteractionRecorded))
    assert isinstance(event, InteractionRecorded)
    headers = dict(record.headers)
    assert record.key == event.trace_id == headers["ce_id"].decode() == TRACE
    assert headers["traceparent"].decode().split("-")[1] == TRACE
    assert headers["ce_time"].decode() == utc(STARTED)
    spool.close()


PREPARED = [
    {"messages": [{"role": "user", "content": "I am bob@example.com"}]},
    {"messages": [{"role": "user", "content": "x" * 300_000}]},
    {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "bob@example.com"}]}],
        "tools": [{"type": "function", "function": {"name": "send"}}],
        "response_format": {"type": "json_object"},
        "metadata": {"category": "billing", "note": "bob@example.com"},
        "n": 2,
    },
    {"messages": [{"role": "user", "content": "\x01" * 159_000}] * 3},
]


@pytest.mark.parametrize("body", PREPARED, ids=["plain", "long", "beyond text", "over the bytes"])
def test_an_event_that_was_begun_before_the_answer_is_the_same(tmp_path, body):
    events = []
    for begun in (False, True):
        spool = Spool(tmp_path / str(begun), limit_bytes=10_000_000)
        interactions = Interactions(spool, Redactor(), pseudonyms=UserPseudonyms(b"s" * 32))
        call = call_of(**body, completion="Write to bob@example.com.", user="jane")
        if begun:
            interactions.prepare(call)
            assert call.part is not None
        interactions.record(call, 0.3)
        (record,), _ = spool.batch()
        events.append(record)
        spool.close()
    assert events[0] == events[1]


def test_no_event_is_begun_of_a_request_that_is_over_or_waits_for_a_detector(tmp_path):
    spool = Spool(tmp_path, limit_bytes=1_000_000)
    over = call_of([{"role": "user", "content": "Hi"}])
    over.recorded = True
    Interactions(spool, Redactor()).prepare(over)
    checked = call_of([{"role": "user", "content": "Hi"}])
    Interactions(spool, Redactor(), unchecked=SimpleNamespace()).prepare(checked)
    assert (over.part, checked.part) == (None, None)
    spool.close()


def test_a_user_is_stored_under_the_hash_of_the_tenant():
    pseudonyms = UserPseudonyms(b"s" * 32)
    call = call_of([{"role": "user", "content": "Hi"}], user="jane@example.com")
    value = event_json(call, 0.3, utc(call.started_at), Redactor(), pseudonyms)
    assert orjson.loads(value)["user_id"] == pseudonyms.of("default", "jane@example.com")
    assert b"jane" not in value
    assert call.request.user == "jane@example.com"  # arms are drawn by the id as it came


def test_an_event_on_the_spool_is_not_lost_where_nobody_takes_its_media(tmp_path):
    spool = Spool(tmp_path, limit_bytes=1_000_000)
    interactions = Interactions(spool, Redactor(), media=SimpleNamespace())
    interactions.record(call_of([{"role": "user", "content": "Hi"}]), 0.3)
    assert len(spool.batch()[0]) == 1
    assert interactions.lost == 0
    spool.close()


def test_a_full_spool_counts_what_is_lost(tmp_path):
    spool = Spool(tmp_path, limit_bytes=2_000)
    interactions = Interactions(spool, Redactor())
    for _ in range(5):
        interactions.record(call_of([{"role": "user", "content": "Hi"}]), 0.3)
    kept = len(spool.batch()[0])
    assert kept + interactions.lost == 5
    assert interactions.lost > 0
    spool.close()


@pytest.mark.parametrize(("fields", "reasons"), [(("tools",), ("version_tools",)), ((), ())])
def test_calls_of_tools_that_only_the_version_knows_are_not_trained_on(fields, reasons):
    calls = [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
    applied = AppliedSettings(engine_model="qwen", fields=fields)
    attempt = EngineAttempt("polite", "", 0.0, status=200, applied=applied)
    event = event_of(
        call_of(
            [{"role": "user", "content": "hi"}],
            completion="",
            more={"tool_calls": calls},
            attempts=[attempt],
        )
    )
    assert event.applied_settings == applied
    assert event.untrainable == reasons


WORDS = st.sampled_from(
    [
        "Where is my parcel?",
        "mail ana@example.org",
        "Call 555-123-4567",
        "",
        "ok",
        "My name is Ana Lee",
    ]
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), WORDS), min_size=1),
    st.sampled_from(
        [{}, {"n": 2}, {"tools": []}, {"continue_final_message": True}, {"top_p": 0.5}]
    ),
)
def test_a_plain_chat_has_the_event_that_any_other_way_would_write(turns, body):
    messages = [{"role": role, "content": text} for role, text in turns]
    call = call_of(messages, **body)
    assert call.request.plain_size == sum(len(text) for _, text in turns)
    quick = event_of(call)
    call.request.plain_size = None
    assert event_of(call) == quick


def test_a_chat_with_more_than_texts_is_not_plain():
    plain = {"role": "user", "content": "Hi"}
    for turn in (
        {**plain, "name": "ana"},
        {"role": "assistant", "content": None},
        {"role": "user"},
    ):
        assert call_of([plain, turn]).request.plain_size is None
    assert call_of([plain]).request.asks_text_alone
    assert not call_of([plain], tools=[]).request.asks_text_alone
