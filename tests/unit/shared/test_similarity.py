"""Similarity of two sets."""

from __future__ import annotations

import pytest

from shared.similarity import jaccard


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [("abc", "abc", 1.0), ("ab", "bc", 1 / 3), ("a", "", 0.0), ("", "", 1.0)],
)
def test_the_share_of_all_members_that_both_have(one: str, other: str, share: float) -> None:
    assert jaccard(set(one), set(other)) == jaccard(set(other), set(one)) == share
