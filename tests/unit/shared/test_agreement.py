"""Agreement: published values, and its limits."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.agreement import (
    RaterLabel,
    agreement,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
)

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


def test_cohen_s_kappa_is_the_published_one() -> None:
    # Cohen's own example as agreement matrix: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no.
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert cohen_kappa(pairs) == pytest.approx(0.4)
    assert cohen_kappa([("y", "y")] * 3) is None
    assert cohen_kappa([]) is None


def test_fleiss_s_kappa_is_the_published_one() -> None:
    # Fleiss (1971): ten subjects, fourteen raters, five categories.
    table = (
        (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
        (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
    )  # fmt: skip
    items = [{str(place): count for place, count in enumerate(row) if count} for row in table]
    assert fleiss_kappa(items) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa([{"a": 3}]) is None


def test_kappa_is_cohen_s_of_two_people_and_fleiss_s_of_equally_many_labels() -> None:
    assert agreement(labels(*NOMINAL[:2])).kappa_of == "cohen"
    assert agreement(labels("a a b", "a b b", "a b a")).kappa_of == "fleiss"
    assert agreement(labels(*MISSING)).kappa_of == ""


def test_ten_thousand_items_take_seconds_not_minutes() -> None:
    rng = random.Random(5)
    said = [
        RaterLabel(f"i{item}", f"r{rater}", rng.choice("abc"))
        for item in range(10_000)
        for rater in range(3)
    ]
    start = time.process_time()
    agreement(said, bootstraps=100)
    assert time.process_time() - start < 3.0
