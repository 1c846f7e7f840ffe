"""Marked spans: what is left of an answer without its disliked parts."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.feedback.voting.spans import MarkedSpan, liked_parts, without_disliked

TEXT = "Restart it. It is your fault, of course. Then wait for the green light.\nGood luck!"


def mark(part: str, *, liked: bool = False, text: str = TEXT) -> MarkedSpan:
    start = text.index(part)
    return MarkedSpan(start=start, end=start + len(part), liked=liked)


def test_the_sentence_of_a_disliked_span_goes() -> None:
    left = without_disliked(TEXT, [mark("your fault")])
    assert left == "Restart it. Then wait for the green light.\nGood luck!"


def test_a_span_over_two_sentences_takes_both_and_the_last_line_goes_whole() -> None:
    assert without_disliked(TEXT, [mark("course. Then")]) == "Restart it. Good luck!"
    assert without_disliked(TEXT, [mark("luck")]).endswith("green light.")


def test_of_a_sentence_with_a_liked_span_only_the_disliked_words_go() -> None:
    spans = [mark(", of course"), mark("It is", liked=True)]
    assert "It is your fault. Then" in without_disliked(TEXT, spans)


def test_liked_parts_are_quoted() -> None:
    spans = [mark("green\u0020light", liked=True), mark("fault")]
    assert liked_parts(TEXT, spans) == "> green light"
    assert liked_parts(TEXT, []) == ""


@given(
    st.text(alphabet="ab .!\n", max_size=40),
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(1, 10), st.booleans()), min_size=1, max_size=5
    ),
)
def test_liked_characters_always_stay_and_nothing_is_added(
    text: str, given_spans: list[tuple[int, int, bool]]
) -> None:
    spans = [MarkedSpan(start=at, end=at + size, liked=liked) for at, size, liked in given_spans]
    left = without_disliked(text, spans)
    rest = iter(text)
    assert all(character in rest for character in left), "what is left is a subsequence"
    for span in spans:
        if span.liked:
            assert text[span.start : span.end].strip() in left


def test_twenty_spans_over_a_long_answer_take_no_time() -> None:
    text = "word " * 20_000
    disliked = [MarkedSpan(start=0, end=len(text) - at, liked=False) for at in range(10)]
    liked = [MarkedSpan(start=at, end=at + 1, liked=True) for at in range(0, 50, 5)]
    began = time.process_time()
    assert without_disliked(text, disliked + liked) == "w" * 10
    assert time.process_time() - began < 0.5


def test_a_span_has_a_length() -> None:
    with pytest.raises(ValueError, match="must lie behind start"):
        MarkedSpan(start=3, end=3, liked=True)
