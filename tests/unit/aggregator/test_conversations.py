"""Conversations of more than text through the join: pairs, examples and ratings keep their turns."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.aggregator.fold import FoldRules
from services.aggregator.join import fold_feedback, fold_interaction
from services.aggregator.pairs import fold_rated
from services.aggregator.rows import PromptRow, TraceRow
from shared.contracts.events.base import ContentPart, Event, Message, Tool, ToolCall
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackType
from shared.contracts.events.interactions import InteractionRecorded
from shared.contracts.events.preferences import PreferencePair, UnpairedExample
from shared.contracts.events.quality import ExampleJoined
from shared.contracts.events.rated import RatedAnswer
from shared.contracts.prompt_key import prompt_key
from tests.support.aggregator import DOWN, UP, feedback, interaction

TOOLS = (Tool(name="get_weather", parameters='{"type":"object"}'),)
CALL = ToolCall(id="c1", name="get_weather", arguments='{"city":"Rome"}')
CALLED = Message(role="assistant", content="", tool_calls=(CALL,))
QUESTION = Message(role="user", content="Weather in Rome?")
AS_TEXT = '[{"name":"get_weather","arguments":{"city":"Rome"}}]'
RULES = FoldRules()


def outputs_of(
    asked: InteractionRecorded, *said: FeedbackSubmitted, rules: FoldRules = RULES
) -> list[Event]:
    """What an interaction and feedback on it put out."""
    fold = fold_interaction(None, asked, asked.to_json(), 0, rules)
    outputs = list(fold.outputs)
    for number, event in enumerate(said, start=1):
        fold = fold_feedback(TraceRow.decode(fold.row.encode()), event, number * 60_000, rules)
        outputs += fold.outputs
    return [output.event for output in outputs]


def paired(*events: Event) -> list[PreferencePair]:
    """Pairs of the ratings among some events, as the prompts' rows make them."""
    rows: dict[str, PromptRow] = {}
    pairs: list[PreferencePair] = []
    for event in events:
        if isinstance(event, RatedAnswer):
            fold = fold_rated(rows.get(event.prompt_key), event)
            rows[event.prompt_key] = PromptRow.decode(fold.row.encode())
            pairs += [o.event for o in fold.outputs if isinstance(o.event, PreferencePair)]
    return pairs


def called(trace: str = "t1") -> InteractionRecorded:
    return interaction(trace, messages=(QUESTION,), tools=TOOLS, completion=AS_TEXT, answer=CALLED)


def correction(original: str, corrected: str, trace: str = "t1") -> FeedbackSubmitted:
    value = {"original": original, "corrected": corrected}
    return feedback(trace=trace, kind=FeedbackType.text_correction, value=value)


@pytest.mark.parametrize("original", ["", AS_TEXT, "Looked up the weather."])
def test_the_rejected_side_of_a_corrected_tool_call_is_the_call(original: str) -> None:
    outputs = outputs_of(called(), correction(original, "Which Rome: Italy or Georgia?"))
    (pair,) = (event for event in outputs if isinstance(event, PreferencePair))
    assert (pair.messages, pair.tools) == ((QUESTION,), TOOLS)
    assert (pair.rejected_turn, pair.rejected) == (CALLED, AS_TEXT)
    assert (pair.chosen_turn, pair.chosen) == (None, "Which Rome: Italy or Georgia?")


def test_tool_turns_in_history_are_in_the_pair() -> None:
    result = Message(role="tool", content="21 C", tool_call_id="c1")
    asked = interaction(messages=(QUESTION, CALLED, result), tools=TOOLS, completion="Warm.")
    outputs = outputs_of(asked, correction("Warm.", "It is 21 C."))
    (pair,) = (event for event in outputs if isinstance(event, PreferencePair))
    assert PreferencePair.model_validate_json(pair.to_json()).messages == asked.messages
    assert (pair.tools, pair.rejected_turn) == (TOOLS, None)


def test_a_thumb_on_a_tool_call_keeps_the_turn() -> None:
    outputs = outputs_of(called(), feedback(kind=UP))
    (unpaired,) = (event for event in outputs if isinstance(event, UnpairedExample))
    (*_, example) = (event for event in outputs if isinstance(event, ExampleJoined))
    (rated,) = (event for event in outputs if isinstance(event, RatedAnswer))
    for event in (unpaired, example, rated):
        assert (event.tools, event.answer, event.completion) == (TOOLS, CALLED, AS_TEXT)


def test_streamed_tool_call_and_another_answer_make_a_pair() -> None:
    better = interaction(
        "t2", messages=(QUESTION,), tools=TOOLS, completion="Which Rome do you mean?"
    )
    (pair,) = paired(
        *outputs_of(called(), feedback(kind=DOWN)),
        *outputs_of(better, feedback("f2", "t2", UP)),
    )
    assert (pair.rejected_turn, pair.chosen_turn, pair.tools) == (CALLED, None, TOOLS)


def picture(trace: str, sha256: str) -> InteractionRecorded:
    parts = (
        ContentPart(type="text", text="What is in this picture?"),
        ContentPart(type="image", sha256=sha256, size=4, media_type="image/png"),
    )
    turn = Message(role="user", content="What is in this picture?\n[image]", parts=parts)
    return interaction(trace, messages=(turn,), completion=f"A {trace}.", untrainable=("media",))


@pytest.mark.parametrize(("other", "pairs"), [("b" * 64, 0), ("a" * 64, 1)])
def test_same_question_other_picture(other: str, pairs: int) -> None:
    good = outputs_of(picture("t1", "a" * 64), feedback(kind=UP))
    bad = outputs_of(picture("t2", other), feedback("f2", "t2", DOWN))
    made = paired(*good, *bad)
    assert len(made) == pairs
    assert all(pair.untrainable == ("media",) for pair in made)
    (unpaired,) = (event for event in good if isinstance(event, UnpairedExample))
    assert unpaired.untrainable == ("media",)


def at_clock(trace: str, clock: str) -> InteractionRecorded:
    system = Message(role="system", content=f"Be brief.\nCurrent time: {clock}")
    return interaction(trace, messages=(system, QUESTION), completion=f"Answer {trace}.")


@pytest.mark.parametrize(("ignored", "pairs"), [((), 0), (("clock",), 1)])
def test_prompts_that_differ_in_the_clock_meet_by_setting(
    ignored: tuple[str, ...], pairs: int
) -> None:
    rules = FoldRules(prompt_ignores=ignored)
    good = outputs_of(at_clock("t1", "2026-11-25 14:05"), feedback(kind=UP), rules=rules)
    bad = outputs_of(at_clock("t2", "2026-11-26 09:11"), feedback("f2", "t2", DOWN), rules=rules)
    assert len(paired(*good, *bad)) == pairs


@pytest.mark.parametrize("stored", ["key", "flag"])
def test_a_rating_leaves_its_old_key_when_the_rules_change(stored: str) -> None:
    asked = at_clock("t1", "2026-11-25 14:05")
    fold = fold_interaction(None, asked, asked.to_json(), 0, FoldRules())
    good = feedback(kind=FeedbackType.rating, value=5)
    bad = feedback(kind=FeedbackType.rating, value=1, revision=1)
    fold = fold_feedback(fold.row, good, 60_000, FoldRules())
    (before,) = (o.event for o in fold.outputs if isinstance(o.event, RatedAnswer))
    row = TraceRow.decode(fold.row.encode())
    if stored == "flag":  # as rows have it that are older than keys of the second version
        row.entries["f1"] = replace(row.entries["f1"], rated=True)
    fold = fold_feedback(row, bad, 120_000, FoldRules(prompt_ignores=("clock",)))
    moved = [o.event for o in fold.outputs if isinstance(o.event, RatedAnswer)]
    new = prompt_key("acme", asked.messages, (), ("clock",))
    assert [(event.prompt_key, event.score) for event in moved] == [
        (before.prompt_key, None),
        (new, 0.0),
    ]
    assert len({event.rated_id for event in moved}) == 2
    assert fold.row.entries["f1"].rated == new
