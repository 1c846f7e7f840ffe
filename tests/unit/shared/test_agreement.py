"""Agreement: published values, and its limits."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.agreement import RaterLabel, agreement, krippendorff_alpha

# Krippendorff (2011): two observers with binary data, two with nominal data, four with missing data.
BINARY = ("0 1 0 0 0 0 0 0 1 0", "1 1 1 0 0 1 0 0 0 0")
NOMINAL = ("a a b b d c c c e d d a", "b a b b b c c c e d d d")
MISSING = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)


def labels(*observers: str) -> list[RaterLabel]:
    return [
        RaterLabel(f"item{item:02}", f"observer{who}", said)
        for who, line in enumerate(observers)
        for item, said in enumerate(line.split())
        if said != "."
    ]


@pytest.mark.parametrize(
    ("observers", "alpha"), [(BINARY, 0.095), (NOMINAL, 0.692), (MISSING, 0.743)]
)
def test_alpha_is_the_published_one(observers: tuple[str, ...], alpha: float) -> None:
    found = agreement(labels(*observers))
    assert found.alpha == pytest.approx(alpha, abs=5e-4)
    assert found.low is not None
    assert found.high is not None
    assert found.low < alpha < found.high <= 1.0


def test_raw_agreement_is_the_share_of_equal_pairs() -> None:
    assert agreement(labels(*BINARY)).raw == pytest.approx(0.6)
    assert agreement(labels("a a", "a b", "a b")).raw == pytest.approx(4 / 6)


def test_what_one_rater_labelled_says_nothing() -> None:
    alone = [RaterLabel("x", "r", "good"), RaterLabel("x", "r", "bad")]
    found = agreement(alone)
    assert (found.items, found.alpha, found.low, found.raw) == (0, None, None, None)
    assert agreement(labels("a a", "a a")).alpha is None


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=2, max_size=5), min_size=1, max_size=8))
def test_alpha_is_at_most_1_and_1_only_where_all_agree(items: list[list[str]]) -> None:
    alpha = krippendorff_alpha([Counter(item) for item in items])
    if alpha is not None:
        assert alpha <= 1.0
        assert (alpha == 1.0) == all(len(set(item)) == 1 for item in items)
