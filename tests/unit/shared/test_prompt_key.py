"""Prompt keys of the published vectors; a change of the normal form needs a new version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.contracts.events.base import Message, Tool, ToolCall
from shared.contracts.prompt_key import PROMPT_KEY_VERSION, normal_prompt, prompt_key

PUBLISHED: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "shared/contracts/prompt-key-vectors.json").read_text(
        encoding="utf-8"
    )
)


def test_the_vectors_are_of_this_version() -> None:
    assert PUBLISHED["version"] == PROMPT_KEY_VERSION


@pytest.mark.parametrize("vector", PUBLISHED["vectors"])
def test_the_published_vectors(vector: dict[str, Any]) -> None:
    messages = [Message(**turn) for turn in vector["messages"]]
    tools = [Tool(**tool) for tool in vector.get("tools", ())]
    ignored = vector.get("ignored", ())
    assert normal_prompt(messages, tools, ignored) == vector["normal"]
    assert prompt_key(vector["tenant"], messages, tools, ignored) == vector["key"]


def system(text: str, ignored: tuple[str, ...] = ("clock", "ids")) -> str:
    turns = [Message(role="system", content=text), Message(role="user", content="Hi")]
    return normal_prompt(turns, (), ignored)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Today is Wednesday, 25 November 2026.", "Today is Friday, 1 May 2027."),
        (
            "Be brief.\nCurrent time: 2026-11-25T14:05:00Z",
            "Be brief.\nCurrent time: 2026-11-26 09:00",
        ),
        ("It is 2:05 pm on Nov 25th, 2026", "It is 11:59 am on Dec 1st, 2026"),
        ("now=1764079500", "now=1764079511"),
        ("Date: 25.11.2026", "Date: 1.12.2026"),
        ("User 4f6ad2c1-0b2e-4c8e-9a51-6f0c51d3a7e4", "User 00000000-0b2e-4c8e-9a51-6f0c51d3a7e5"),
        ("Session 4bf92f3577b34da6a3ce929d0e0e4736.", "Session 0af7651916cd43dd8448eb211c80319c."),
        ("Customer 10023345", "Customer 10023346"),
    ],
)
def test_a_system_prompt_may_say_another_time_or_id(one: str, other: str) -> None:
    assert system(one) == system(other)
    assert system(one, ()) != system(other, ())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("We are open from 9:00 to 17:00.", "We are open from 10:00 to 18:00."),
        ("Answer in 100 words.", "Answer in 200 words."),
        ("You may march.", "You march."),
        ("Room 101", "Room 102"),
        ("Be effective", "Be defaced"),
    ],
)
def test_what_a_system_prompt_asks_stays(one: str, other: str) -> None:
    assert system(one) != system(other)


def test_what_a_user_says_stays_as_it_is() -> None:
    def asked(text: str) -> str:
        return normal_prompt([Message(role="user", content=text)], (), ("clock", "ids"))

    assert asked("Is it open now, 2026-11-25?") != asked("Is it open now, 2026-11-26?")
    assert asked("Where is order 10023345?") != asked("Where is order 10023346?")


CALL = ToolCall(id="c1", name="get_weather", arguments='{"city":"Rome","unit":"C"}')


def conversation(**changes: Any) -> list[Message]:
    call = CALL.model_copy(update=changes.pop("call", {}))
    result = {"role": "tool", "content": "21 C", "tool_call_id": call.id, **changes}
    return [
        Message(role="user", content="Weather in Rome?"),
        Message(role="assistant", content="", tool_calls=(call,)),
        Message.model_validate(result),
    ]


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"call": {"id": "call_9f2"}}, True),
        ({"call": {"arguments": '{"unit":"C","city":"Rome"}'}}, True),
        ({"call": {"arguments": '{"city":"Oslo","unit":"C"}'}}, False),
        ({"call": {"name": "get_climate"}}, False),
        ({"call": {"unparsed": True}}, False),
        ({"content": "22 C"}, False),
        ({"tool_call_id": "another"}, False),
        ({"name": "get_weather"}, False),
        ({"reasoning": "warm"}, False),
        ({"parts": [{"type": "image", "sha256": "a"}]}, False),
    ],
)
def test_the_key_is_over_the_whole_conversation(changes: dict[str, Any], same: bool) -> None:
    key = prompt_key("acme", conversation())
    assert key.startswith("2-")
    assert (prompt_key("acme", conversation(**changes)) == key) is same


def test_other_tools_are_another_prompt_whatever_their_order() -> None:
    turns = [Message(role="user", content="Hi")]
    one, other = Tool(name="a"), Tool(name="b", parameters='{"x":1,"y":2}')
    key = prompt_key("acme", turns, (one, other))
    turned = other.model_copy(update={"parameters": '{"y":2,"x":1}'})
    assert key == prompt_key("acme", turns, (turned, one))
    keys = {key, prompt_key("acme", turns), prompt_key("acme", turns, (one,))}
    assert len(keys) == 3
