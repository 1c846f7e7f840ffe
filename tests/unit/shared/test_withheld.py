"""What was withheld anywhere in a pair or example is a reason not to train on it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from services.training.dataset_rows import answer_of, pair_of
from shared.contracts.events.base import ContentPart, Message, Tool, ToolCall
from shared.contracts.events.preferences import PairSource, PreferencePair, UnpairedExample
from shared.withheld import UNCHECKED

ARGUMENTS = f'{{"city":"{UNCHECKED}"}}'
PLACES: dict[str, dict[str, Any]] = {
    "content": {"content": UNCHECKED},
    "name": {"content": "hi", "name": UNCHECKED},
    "reasoning": {"content": "hi", "reasoning": UNCHECKED},
    "refusal": {"content": "", "refusal": UNCHECKED},
    "arguments": {"content": "", "tool_calls": (ToolCall(name="f", arguments=ARGUMENTS),)},
    "part": {"content": "[image] a", "parts": (ContentPart(type="text", text=UNCHECKED),)},
}
TOOLS = {
    "description": Tool(name="f", description=UNCHECKED),
    "schema": Tool(name="f", parameters=f'{{"description":"{UNCHECKED}"}}'),
}
QUESTION = Message(role="user", content="hi")


def pair(**more: Any) -> PreferencePair:
    fields = {
        "pair_id": "p", "tenant": "t", "model": "m", "messages": (QUESTION,), "chosen": "yes",
        "rejected": "no", "source": PairSource.vote, "causes": (),
        "created_at": datetime(2026, 1, 2, tzinfo=UTC),
    }  # fmt: skip
    return PreferencePair.model_validate({**fields, **more})


def example(**more: Any) -> UnpairedExample:
    fields = {
        "pair_id": "p", "tenant": "t", "model": "m", "messages": (QUESTION,), "completion": "yes",
        "label": True, "causes": (), "created_at": datetime(2026, 1, 2, tzinfo=UTC),
    }  # fmt: skip
    return UnpairedExample.model_validate({**fields, **more})


@pytest.mark.parametrize("place", PLACES)
def test_a_turn(place: str) -> None:
    turn = Message(role="assistant", **PLACES[place])
    for event in (
        pair(messages=(QUESTION, turn, QUESTION)),
        pair(chosen_turn=turn),
        pair(rejected_turn=turn),
    ):
        assert pair_of(event).untrainable == ("unchecked",)
    for labelled in (example(messages=(turn,)), example(answer=turn)):
        assert answer_of(labelled).untrainable == ("unchecked",)


@pytest.mark.parametrize("place", TOOLS)
def test_a_tool(place: str) -> None:
    assert pair(tools=(TOOLS[place],)).reasons == ("unchecked",)
    assert example(tools=(TOOLS[place],)).reasons == ("unchecked",)


def test_an_answer_and_nothing() -> None:
    assert pair(chosen=UNCHECKED).reasons == ("unchecked",)
    assert pair(rejected=UNCHECKED).reasons == ("unchecked",)
    assert example(completion=UNCHECKED, untrainable=("media", "unchecked")).reasons == (
        "media",
        "unchecked",
    )
    assert pair(tools=(Tool(name="f", description="Finds"),), untrainable=("media",)).reasons == (
        "media",
    )
    assert example().reasons == ()
