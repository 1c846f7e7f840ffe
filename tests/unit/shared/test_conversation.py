"""Turns of a conversation: what is stored of them, and that text turns are stored as before."""

from __future__ import annotations

import json

from shared.contracts.events.base import Message, ToolCall
from shared.contracts.events.interactions import InteractionRecorded
from shared.contracts.generate import CONTRACTS

EXAMPLES = CONTRACTS / "examples"


def test_a_text_turn_is_stored_as_role_and_content_alone() -> None:
    turn = Message(role="user", content="Hi")
    assert turn.is_text
    assert json.loads(turn.model_dump_json()) == {"role": "user", "content": "Hi"}


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
