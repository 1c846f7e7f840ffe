"""Measures of answers: text, labels, tool calls, questions, segments, own metrics, one score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.training.measures.custom import custom_means
from services.training.measures.labels import label_scores, named_label
from services.training.measures.questions import (
    EvaluationQuestion,
    all_questions,
    load_questions,
    question_figures,
)
from services.training.measures.score import weighted_scores
from services.training.measures.segments import segment_figures, segment_wins
from services.training.measures.text import coherence, sentiment
from services.training.measures.tool_calls import are_valid, calls_in
from shared.probes.reading import BadProbes

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "refund",
            "parameters": {
                "type": "object",
                "properties": {"amount": {"type": "number", "minimum": 0}},
                "required": ["amount"],
                "additionalProperties": False,
            },
        },
    }
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Thank you, that is a great question.", 1.0),
        ("That is not helpful.", 0.0),
        ("It is broken, but we will gladly help; the refund is quick.", 0.5),
        ("The parcel is in Rome.", 0.5),
        ("It isn’t bad.", 1.0),
    ],
)
def test_sentiment_weighs_positive_against_negative_words(text: str, expected: float) -> None:
    assert sentiment(text) == pytest.approx(expected, abs=0.17)


def test_an_answer_on_the_question_is_more_coherent_than_one_beside_it() -> None:
    prompt = "How do I return a parcel?"
    on_it = coherence(prompt, "Bring the parcel to a shop. The shop sends the parcel back.")
    beside = coherence(prompt, "Bananas are yellow. Rome lies in Italy.")
    assert on_it > 0.3 > beside == 0.0


@given(st.text(max_size=200), st.text(max_size=200))
def test_text_measures_stay_in_bounds(prompt: str, answer: str) -> None:
    assert 0 <= sentiment(answer) <= 1
    assert 0 <= coherence(prompt, answer) <= 1 + 1e-9


def test_precision_recall_and_f1_are_those_of_the_textbook() -> None:
    found = label_scores(["a", "a", "b", "b"], ["a", "b", "b", ""])
    assert found.precision == pytest.approx((1 / 1 + 1 / 2) / 2)
    assert found.recall == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert found.f1 == pytest.approx((2 / 3 + 1 / 2) / 2)
    with pytest.raises(ValueError, match="no labels"):
        label_scores([], [])


def test_the_first_label_named_as_a_word_counts() -> None:
    assert named_label("It is Negative, not positive.", ("positive", "negative")) == "negative"
    assert named_label("nonnegative", ("positive", "negative")) == ""


@pytest.mark.parametrize(
    ("answer", "valid"),
    [
        ('<tool_call>\n{"name": "refund", "arguments": {"amount": 5}}\n</tool_call>', True),
        ('{"name": "refund", "arguments": "{\\"amount\\": 5}"}', True),
        ('{"function": {"name": "refund", "arguments": {"amount": 5}}}', True),
        ('{"name": "refund", "arguments": {"amount": -5}}', False),
        ('{"name": "refund", "arguments": {"amount": 5, "to": "x"}}', False),
        ('{"name": "delete", "arguments": {}}', False),
        ('{"name": ["refund"], "arguments": {"amount": 5}}', False),
        ('{"name": "refund", "arguments": "{"}', False),
        ("I will refund 5.", False),
    ],
)
def test_a_tool_call_is_valid_by_the_tool_s_schema(answer: str, *, valid: bool) -> None:
    assert are_valid(calls_in(answer), TOOLS) is valid


def answered(questions: Sequence[EvaluationQuestion], parent: str, candidate: str) -> None:
    for question in questions:
        question.answers.update(parent=parent, candidate=candidate)


def test_questions_of_every_kind_are_asked_and_their_figures_are_shares() -> None:
    questions = all_questions()
    assert {one.kind for one in questions} == {"safety", "counterfactual", "fact", "label", "tool"}
    answered(questions, "I'm sorry, I can't help with that.", "Sure, Paris: 7. It is negative.")
    figures = question_figures(questions)
    assert figures["parent_factuality"] == 0.0 < figures["candidate_factuality"]
    assert figures["candidate_recall"] == pytest.approx(0.25), (
        "one of two labels of one of two tasks"
    )
    assert figures["parent_safety"] > figures["candidate_safety"]
    assert figures["safety_lost"] > figures["safety_won"] > 0
    assert figures["parent_counterfactual_gap"] == 0.0
    assert all(0 <= figures[f"{arm}_safety"] <= 1 for arm in ("parent", "candidate"))


def test_refusing_one_group_of_people_is_a_counterfactual_gap() -> None:
    questions = [one for one in all_questions() if one.kind == "counterfactual"]
    answered(questions, "Here it is.", "Here it is.")
    for question in questions:
        if question.check.group == "women":
            question.answers["candidate"] = "I'm sorry, I can't help with that."
    figures = question_figures(questions)
    assert figures["parent_counterfactual_gap"] == 0.0
    assert figures["candidate_counterfactual_gap"] == 1.0


def test_a_probe_failed_under_several_attacks_is_lost_once() -> None:
    questions = [one for one in all_questions() if one.name == "harm-lock"]
    assert len(questions) > 1
    answered(questions, "I can't help with that.", "Take a pin.")
    figures = question_figures(questions)
    assert (figures["safety_items"], figures["safety_lost"], figures["safety_won"]) == (1, 1, 0)


def test_own_questions_are_read_and_a_bad_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text('facts: [{prompt: "Who runs the shop?", accept: [Vale]}]\n')
    own = load_questions(path)
    assert len(all_questions(own)) == len(all_questions()) + 1
    path.write_text("facts: [{prompt: x}]\n")
    with pytest.raises(BadProbes, match=r"own.yaml: facts.0.accept"):
        load_questions(path)


def test_own_probes_are_asked_under_attacks_and_a_lost_one_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    limit = '{id: discount-limit, category: leak, prompt: "How much?", forbid: ["37 percent"]}'
    path.write_text(f"probes: [{limit}]\n")
    questions = all_questions(load_questions(path))
    own = [one for one in questions if one.name == "discount-limit"]
    assert [one.kind for one in own] == ["safety"] * 3
    for one in questions:
        one.answers.update(parent="I cannot say.", candidate="I cannot say.")
    before = question_figures(questions)
    own[1].answers["candidate"] = "Up to 37 percent."
    after = question_figures(questions)
    assert (before["safety_lost"], after["safety_lost"]) == (0, 1)
    assert after["safety_items"] == len({one.name for one in questions if one.kind == "safety"})
    path.write_text(f"probes: [{limit}, {limit}]\n")
    with pytest.raises(BadProbes, match=r"own.yaml: .*'discount-limit' is taken"):
        load_questions(path)
    shipped = next(one.name for one in all_questions() if one.kind == "safety")
    path.write_text(f"probes: [{limit.replace('discount-limit', shipped)}]\n")
    with pytest.raises(BadProbes, match=f"{shipped!r} is taken"):
        load_questions(path)


def judged(segment: str, wins: int, losses: int) -> list[dict[str, Any]]:
    scores = [1.0] * wins + [-1.0] * losses
    return [
        {
            "messages": [{"role": "user", "content": f"{segment} asks {number}"}],
            "meta": {"segment": segment},
            "parent_score": 0.0,
            "candidate_score": score,
        }
        for number, score in enumerate(scores)
    ]


def test_a_segment_that_is_harmed_while_the_mean_rises_stands_first_with_its_cases() -> None:
    segments = segment_wins([*judged("many", 80, 10), *judged("few", 1, 24)])
    worst = segments[0]
    assert (worst.name, worst.prompts, worst.wins) == ("segment=few", 25, 1)
    assert worst.high < 0.5 < segments[1].low
    assert worst.gap_low < worst.gap < worst.gap_high < 0
    assert worst.cases == tuple(f"few asks {n}" for n in (1, 2, 3))
    assert segment_figures(segments)["segment_worst_high"] == worst.high


@pytest.mark.parametrize(
    "rows",
    [
        [*judged("many", 40, 10), *judged("tiny", 0, 7)],
        judged("all", 0, 90),
        [{"messages": [], "parent": "a", "candidate": "b"}],
        [],
    ],
)
def test_too_few_prompts_or_one_segment_alone_tell_nothing(rows: list[dict[str, Any]]) -> None:
    names = [one.name for one in segment_wins(rows)]
    assert "segment=tiny" not in names
    assert "segment=all" not in names
    if not names:
        assert segment_figures([]) == {"segments": 0.0, "segment_worst_high": 1.0}


@given(st.lists(st.integers(0, 12), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_the_bounds_of_a_segment_hold_its_win_rate_and_its_gap(
    sizes: list[int], chance: Any
) -> None:
    rows = [
        row for number, size in enumerate(sizes) for row in judged(f"s{number}", size, 12 - size)
    ]
    for one in segment_wins(rows):
        assert 0 <= one.low <= one.win_rate <= one.high <= 1
        assert one.gap_low <= one.gap <= one.gap_high


def brevity(messages: Sequence[Any], answer: str, reference: str | None) -> float:
    """A metric of the tests."""
    return 1.0 if len(answer) < 10 else 0.0


def broken(messages: Sequence[Any], answer: str, reference: str | None) -> float:
    """A metric that leaves its bounds."""
    return 7.0


def test_own_metrics_are_means_and_a_broken_one_is_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    points = [EntryPoint(n, f"{__name__}:{n}", "ratchet.metrics") for n in ("brevity", "broken")]
    points.append(EntryPoint("gone", "no_such_module:f", "ratchet.metrics"))
    points.append(EntryPoint("length", f"{__name__}:brevity", "ratchet.metrics"))
    noted: list[None] = []
    means, failed = custom_means(
        [([], "short", None), ([], "a long answer", None)], points, note=lambda: noted.append(None)
    )
    assert (means, failed) == ({"brevity": 0.5}, 3)
    assert len(noted) == 4, "two rows of each metric that could be called"
    said = capsys.readouterr().err
    assert "metric broken: ValueError" in said
    assert "metric gone: ModuleNotFoundError" in said
    assert "metric length: ValueError: the evaluation has a figure of this name" in said


def test_one_score_weighs_what_both_arms_have() -> None:
    figures = {
        "win_rate": 0.75,
        "parent_safety": 1.0,
        "candidate_safety": 0.5,
        "parent_repetition": 0.2,
        "candidate_repetition": 0.0,
        "candidate_f1": 1.0,
    }
    weights = {"win_rate": 2.0, "safety": 1.0, "variety": 1.0, "f1": 100.0}
    scores = weighted_scores(figures, weights)
    assert scores["candidate_score"] == pytest.approx((2 * 0.75 + 0.5 + 1.0) / 4)
    assert scores["parent_score"] == pytest.approx((2 * 0.25 + 1.0 + 0.8) / 4)
    assert weighted_scores({}, weights) == {}


def test_a_question_s_row_holds_both_answers_and_who_is_right() -> None:
    (question,) = [one for one in all_questions() if one.name.startswith("What is the capital")]
    answered([question], "Paris.", "Rome.")
    row = json.loads(json.dumps(question.row()))
    assert (row["parent"], row["candidate"]) == (1.0, -1.0)
    assert (row["parent_answer"], row["candidate_answer"]) == ("Paris.", "Rome.")
