"""What answers do, by rule."""

from __future__ import annotations

import json

import pytest

from services.router.behaviour import LENGTH_SCALE, behaviour_of


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m very sorry. That is out of scope.",
        "I cannot assist with this request.",
        "As an AI language model, I do not have opinions.",
        "Es tut mir leid, dabei kann ich nicht helfen.",
        "Lo siento, no puedo ayudar con eso.",
    ],
)
def test_refusals_are_told_by_how_an_answer_begins(text: str) -> None:
    assert "refused" in behaviour_of(text, "stop").kinds


@pytest.mark.parametrize(
    "text",
    [
        "Paris is the capital of France.",
        "I can help with that: first, open the settings.",
        "The customer wrote that they apologise.",
        "A long answer. " * 20 + "I cannot help with the rest.",
        "",
    ],
)
def test_answers_are_no_refusals(text: str) -> None:
    assert behaviour_of(text, "stop").kinds == ("answered",)


def test_an_answer_cut_at_its_limit_is_told_and_its_length_is_bounded() -> None:
    found = behaviour_of("x" * (3 * LENGTH_SCALE), "length")
    assert found.kinds == ("answered", "cut")
    assert found.length == 1
    assert behaviour_of("x" * (LENGTH_SCALE // 4), "stop").length == 0.25


@pytest.mark.parametrize(
    ("arguments", "name", "kinds"),
    [
        ('{"city": "Oslo"}', "weather", ("answered", "tool_called")),
        ("", "weather", ("answered", "tool_called")),
        ('{"city": ', "weather", ("answered", "tool_called", "tool_failed")),
        ("[1]", "weather", ("answered", "tool_called", "tool_failed")),
        ("{}", "", ("answered", "tool_called", "tool_failed")),
    ],
)
def test_a_tool_call_needs_a_name_and_an_object(
    arguments: str, name: str, kinds: tuple[str, ...]
) -> None:
    calls = json.dumps([{"function": {"name": name, "arguments": arguments}}])
    assert behaviour_of(calls, "tool_calls").kinds == kinds


def test_calls_in_fragments_are_not_judged() -> None:
    assert behaviour_of('[{"function":{}}][{}]', "tool_calls").kinds == ("answered",)
