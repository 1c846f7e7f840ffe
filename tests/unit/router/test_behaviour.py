"""What answers do, by rule."""

from __future__ import annotations

import orjson
import pytest

from services.router.behaviour import LENGTH_SCALE, AnswerBehaviour, behaviour_of
from services.router.response import EngineResponse, StreamReader, read_response


def said(text: str, finish_reason: str) -> AnswerBehaviour:
    return behaviour_of(EngineResponse(text, finish_reason))


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
    assert "refused" in said(text, "stop").kinds


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
    assert said(text, "stop").kinds == ("answered",)


def test_an_answer_cut_at_its_limit_is_told_and_its_length_is_bounded() -> None:
    found = said("x" * (3 * LENGTH_SCALE), "length")
    assert found.kinds == ("answered", "cut")
    assert found.length == 1
    assert said("x" * (LENGTH_SCALE // 4), "stop").length == 0.25


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
    function = {"name": name, "arguments": arguments}
    message = {"content": None, "tool_calls": [{"id": "c1", "function": function}]}
    choice = {"message": message, "finish_reason": "tool_calls"}
    whole, _ = read_response(orjson.dumps({"choices": [choice]}), "v", "t")
    assert behaviour_of(whole).kinds == kinds

    reader = StreamReader("v", "t", include_usage=False)
    half = len(arguments) // 2
    pieces = [
        {"id": "c1", "function": {"name": name, "arguments": arguments[:half]}},
        {"function": {"arguments": arguments[half:]}},
    ]
    for piece in pieces:
        delta = {"tool_calls": [{"index": 0, **piece}]}
        choice = {"index": 0, "delta": delta, "finish_reason": "tool_calls"}
        reader.feed(b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n")
    assert behaviour_of(reader.finish()).kinds == kinds


def test_a_text_that_looks_like_calls_is_not_judged_as_calls() -> None:
    assert said('[{"function":{}}][{}]', "tool_calls").kinds == ("answered",)
