"""Votes faster than reading."""

from __future__ import annotations

from datetime import timedelta

import pytest

from services.feedback.voting.reading_time import LONGEST, SHORTEST, least_reading_time, words


@pytest.mark.parametrize(
    ("left", "right", "seconds"),
    [
        ("word " * 119, "word " * 119, 20.0),
        ("word " * 60, "word " * 59, 10.0),
        ("字" * 357, "字" * 357, 10.0),
    ],
    ids=["two hundred words", "half", "a script without spaces"],
)
def test_a_third_of_a_reader_s_time_is_the_least(left: str, right: str, seconds: float) -> None:
    assert least_reading_time(left, right).total_seconds() == pytest.approx(seconds, rel=0.01)


def test_the_least_time_has_bounds() -> None:
    assert least_reading_time("", "") == SHORTEST == timedelta(seconds=1)
    assert least_reading_time("word " * 9_000, "word") == LONGEST


def test_words_are_counted_by_spaces_or_by_length() -> None:
    assert words("a b c d e f") == 6
    assert words("x" * 60) == 10
