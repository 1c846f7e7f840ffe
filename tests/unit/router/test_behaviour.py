"""What answers do, by rule."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.behaviour import LENGTH_SCALE, AnswerBehaviour, behaviour_of
from services.router.language import CHARACTERS, language_of, words_of
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


@pytest.mark.parametrize(
    ("text", "asks_back"),
    [
        ("Which order do you mean?", True),
        ("Gerne. Welche Bestellnummer hat das Paket?  ", True),
        ("どの注文ですか\uff1f", True),
        ("It arrives tomorrow.", False),
        ("It arrives tomorrow. Is there anything else I can help you with?", False),
        ("Es kommt morgen. Kann ich sonst noch etwas tun?", False),
        ("It arrives tomorrow. " * 20 + "Shall I call?", False),
        ("", False),
    ],
)
def test_a_clarifying_question_is_a_short_answer_that_ends_in_one(
    text: str, asks_back: bool
) -> None:
    assert ("asked_back" in said(text, "stop").kinds) is asks_back


@pytest.mark.parametrize(
    ("asked", "text", "switched"),
    [
        ("Wo ist mein Paket?", "Your parcel is in the warehouse and arrives tomorrow.", True),
        ("Wo ist mein Paket?", "Ihr Paket ist im Lager und kommt morgen.", False),
        ("Where is my parcel?", "您的包裹今天早上离开了我们的仓库。", True),
        ("Где моя посылка?", "Посылка придёт завтра.", False),
        (
            "O\u00f9 est mon colis et que dois-je faire ?",
            "O seu pacote está com a equipe, não se preocupe.",
            True,
        ),
        ("Where is my parcel?", "42", False),
        ("42 + 1", "Das ist 43, und nicht 44.", False),
        ("", "Your parcel is in the warehouse.", False),
    ],
)
def test_a_language_counts_as_switched_where_both_are_known_and_differ(
    asked: str, text: str, switched: bool
) -> None:
    found = behaviour_of(EngineResponse(text, "stop"), asked)
    assert ("language_switched" in found.kinds) is switched


def test_only_the_beginning_of_question_and_answer_tells_their_language() -> None:
    asked = ("Où est mon colis et que dois-je faire ? " * 6)[:CHARACTERS]
    text = ("Le colis est dans le dépôt et vous le recevrez. " * 6)[:CHARACTERS]
    english = " the parcel is with the driver and you can have it" * 50
    kinds = behaviour_of(EngineResponse(text + english, "stop"), asked + english).kinds
    assert "language_switched" not in kinds
    assert "language_switched" in behaviour_of(EngineResponse(english, "stop"), asked).kinds


@given(st.text(st.characters(max_codepoint=127)))
def test_words_of_ascii_are_those_that_the_pattern_finds(text: str) -> None:
    # One letter beyond ASCII makes the pattern read the text.
    assert [word.decode() for word in words_of(text)] == words_of(f"{text} \u00ff")[:-1]
    assert language_of(text) == language_of(f"{text} \u00ff")
