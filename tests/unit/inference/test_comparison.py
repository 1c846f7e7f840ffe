"""Comparison of shadow answers with shown ones, and what of them a result keeps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.comparison import MAX_LENGTH_RATIO, compare, similarity
from services.inference.engine import Generated
from shared.contracts.events.generations import ShownAnswer


def shown(completion: str = "Press the button.", *tools: str) -> ShownAnswer:
    return ShownAnswer(completion=completion, tool_calls=tools, latency_ms=200)


def made(text: str = "Press the button.", *tools: str) -> Generated:
    return Generated(text, "stop", 3, {"tool_calls": [{"name": name} for name in tools]})


def test_the_same_answer_does_not_differ() -> None:
    seen = compare(shown(), made(), 400)
    assert (seen.length_ratio, seen.similarity, seen.tools_equal) == (1.0, 1.0, True)
    assert (seen.refused, seen.shown_refused) == (False, False)
    assert (seen.latency_ms, seen.shown_latency_ms) == (400, 200)


def test_a_refusal_is_told_on_either_side() -> None:
    refusal = "I'm sorry, I cannot help with that."
    assert compare(shown(), made(refusal), 1).refused
    assert compare(shown(refusal), made(), 1).shown_refused
    # An answer that calls a tool did what it was asked.
    assert not compare(shown(), made(refusal, "search"), 1).refused


@pytest.mark.parametrize(
    ("theirs", "ours", "equal"),
    [
        ((), (), True),
        (("search",), ("search",), True),
        (("search",), (), False),
        (("search", "open"), ("open", "search"), False),
    ],
)
def test_tools_are_equal_by_name_in_their_order(
    theirs: tuple[str, ...], ours: tuple[str, ...], equal: bool
) -> None:
    assert compare(shown("", *theirs), made("", *ours), 1).tools_equal is equal


def test_an_endless_answer_to_an_empty_one_has_a_bounded_ratio() -> None:
    assert compare(shown(""), made("x" * 100_000), 1).length_ratio == MAX_LENGTH_RATIO


@given(st.text(), st.text())
def test_similarity_is_a_symmetric_share(one: str, other: str) -> None:
    assert 0 <= similarity(one, other) == similarity(other, one) <= 1
    assert similarity(one, one) == 1


def test_similarity_counts_words_in_both() -> None:
    assert similarity("Press the red button", "press the blue button") == 3 / 5
