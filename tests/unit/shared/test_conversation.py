"""Turns of a conversation: what is stored of them, and that text turns are stored as before."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contracts.conversation import (
    openai_tools,
    openai_turn,
    stored_tools,
    stored_turn,
    template_turn,
)
from shared.contracts.events.base import Message, Tool, ToolCall
from shared.contracts.events.interactions import InteractionRecorded
from shared.contracts.generate import CONTRACTS

EXAMPLES = CONTRACTS / "examples"


def test_a_text_turn_is_stored_as_role_and_content_alone() -> None:
    turn = Message(role="user", content="Hi")
    assert turn.is_text
    assert json.loads(turn.model_dump_json()) == {"role": "user", "content": "Hi"}


@pytest.mark.parametrize("kind", [["text"], {"a": 1}, None, 7])
def test_a_part_whose_type_is_no_text_is_stored_by_what_it_holds(kind: Any) -> None:
    said = stored_turn({"role": "user", "content": [{"type": kind, "text": "hi"}]})
    assert said["content"] == "hi"
    odd = stored_turn({"role": "user", "content": [{"type": kind, "image_url": 1}]})
    assert odd["parts"][0]["type"] == "other"


def test_a_tool_call_is_more_than_text() -> None:
    turn = Message(role="assistant", content="", tool_calls=(ToolCall(id="c", name="now"),))
    assert not turn.is_text
    assert Message.model_validate_json(turn.model_dump_json()) == turn


def test_a_text_interaction_has_no_field_that_it_did_not_have() -> None:
    name = "ratchet.interaction.recorded.v1"
    event = InteractionRecorded.model_validate_json((EXAMPLES / f"{name}.json").read_bytes())
    released = json.loads((CONTRACTS / "released" / "1" / f"{name}.json").read_text())
    stored = json.loads(event.to_json())
    assert set(stored) - {"engine_id"} <= set(released["properties"])
    assert stored["messages"] == [{"role": "user", "content": "How do I reset my router?"}]


DATA = b"\x89PNG"
SHA = hashlib.sha256(DATA).hexdigest()
BASE64 = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    ("part", "stored"),
    [
        ({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{BASE64}"}},
         {"type": "image", "sha256": SHA, "size": 4, "media_type": "image/png"}),
        ({"type": "image_url", "image_url": f"data:image/png;base64,{BASE64}"},
         {"type": "image", "sha256": SHA, "size": 4, "media_type": "image/png"}),
        ({"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}},
         {"type": "audio", "sha256": SHA, "size": 4, "media_type": "audio/wav"}),
        ({"type": "file", "file": {"file_data": f"data:application/pdf;base64,{BASE64}"}},
         {"type": "file", "sha256": SHA, "size": 4, "media_type": "application/pdf"}),
        ({"type": "file", "file": {"file_id": "file-1"}},
         {"type": "file", "sha256": hashlib.sha256(b"file-1").hexdigest(), "reference": True}),
        ({"type": "image_url", "image_url": {"url": "https://x.example/a.png"}},
         {"type": "image", "reference": True,
          "sha256": hashlib.sha256(b"https://x.example/a.png").hexdigest()}),
    ],
)  # fmt: skip
def test_media_are_stored_by_digest(part: dict[str, Any], stored: dict[str, Any]) -> None:
    turn = stored_turn({"role": "user", "content": [{"type": "text", "text": "See"}, part]})
    assert turn["content"] == f"See\n[{stored['type']}]"
    assert turn["parts"] == [{"type": "text", "text": "See"}, stored]
    assert BASE64 not in json.dumps(turn)
    assert Message.model_validate(turn).model_dump(mode="json") == turn


def test_the_stored_form_of_a_stored_turn_is_itself() -> None:
    name = "ratchet.interaction.recorded.v1+tools"
    event = InteractionRecorded.model_validate_json((EXAMPLES / f"{name}.json").read_bytes())
    assert event.answer is not None
    for message in (*event.messages, event.answer):
        turn = message.model_dump(mode="json")
        assert stored_turn(turn) == turn
    tools = [tool.model_dump(mode="json") for tool in event.tools]
    assert stored_tools(tools) == tools


def test_a_turn_goes_to_templates_and_engines_and_comes_back() -> None:
    call = {"id": "c1", "name": "f", "arguments": '{"b":1,"a":{"z":1}}'}
    stored = {"role": "assistant", "content": "", "tool_calls": [call]}
    message = Message.model_validate(stored)
    asked = openai_turn(message)
    assert asked["tool_calls"][0]["function"]["arguments"] == call["arguments"]
    (rendered,) = template_turn(asked)["tool_calls"]
    assert list(rendered["function"]["arguments"]) == ["b", "a"]
    assert stored_turn(asked) == stored_turn(template_turn(asked)) == stored


@pytest.mark.parametrize("arguments", ["{oops", "[1]", '{"x":123456789012345678901}'])
def test_arguments_that_no_template_can_take_stay_a_text(arguments: str) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    turn = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert template_turn(turn) == turn


def test_tools_go_to_templates_and_come_back() -> None:
    stored = [
        {"name": "f", "parameters": '{"b":{},"a":1}', "description": "F."},
        {"name": "g", "parameters": "{}"},
    ]
    tools = openai_tools(Tool.model_validate(tool) for tool in stored)
    assert list(tools[0]["function"]["parameters"]) == ["b", "a"]
    assert stored_tools(tools) == stored


def test_arguments_keep_what_was_written() -> None:
    calls = [
        {"function": {"name": "f", "arguments": given}}
        for given in ('{"id": 123456789012345678901}', "", "[1]", "{oops", '{"x": NaN}')
    ]
    stored = stored_turn({"role": "assistant", "tool_calls": calls})["tool_calls"]
    assert [call["arguments"] for call in stored] == [
        '{"id":123456789012345678901}', "{}", "[1]", "{oops", '{"x": NaN}'
    ]  # fmt: skip
    assert [call.get("unparsed", False) for call in stored] == [False, False, True, True, True]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "tool_calls", "function", "name", "arguments",
                 "image_url", "url", "parts", "refusal", "function_call", "sha256", "size",
                 "unparsed", "image", "data"]
            ),
            inner,
            max_size=4,
        ),
        max_leaves=12,
    ).filter(lambda value: isinstance(value, dict))
)  # fmt: skip
def test_any_turn_is_stored_in_a_form_that_stays(turn: dict[str, Any]) -> None:
    stored = stored_turn({**turn, "role": "user"})
    assert stored_turn(stored) == stored
    assert Message.model_validate(stored).model_dump(mode="json") == stored


def test_a_client_s_part_in_the_stored_form_brings_nothing_else() -> None:
    part = {"type": "image", "sha256": SHA, "size": "4", "data": BASE64, "media_type": ["x"]}
    turn = stored_turn({"role": "user", "content": [part], "parts": True})
    assert turn["parts"] == [{"type": "image", "sha256": SHA}]
    assert Message.model_validate(turn).model_dump(mode="json") == turn
