"""Pair quality: which pairs are left out, and what card and score say of the others."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.training.dataset import select_pairs
from services.training.dataset_manifest import Manifest
from services.training.row_checks import refusal
from services.training.sides import DatasetRules
from shared.contracts.events.base import Message, ToolCall
from shared.pair_quality import quality_of, sentences, similarity
from tests.unit.training.builders import pair

RULES = DatasetRules()
LONG = "Hold the small button for ten seconds. Then wait for the green light and log in again."
NEAR = "Hold the small button for ten seconds. Then wait for the green light and sign in again."

SHORTER = {"chosen": "Just unplug it.", "rejected": LONG}
IMPORTED = {"meta": {"source": "import"}}
VOTED, PREFERRED = {"meta": {"source": "vote"}}, {"meta": {"source": "preference"}}


@pytest.mark.parametrize(
    ("fields", "rules", "reason"),
    [
        (SHORTER, {}, "chosen_shorter"),
        (SHORTER, {"length_ratio": 0.0}, None),
        (SHORTER | VOTED, {}, None),
        (SHORTER | PREFERRED, {}, None),
        (SHORTER | {"meta": {"source": "ratings"}}, {}, None),
        (SHORTER | IMPORTED, {}, None),
        (SHORTER | IMPORTED, {"compared_sources": ("vote",)}, "chosen_shorter"),
        (SHORTER | {"meta": {"source": "ai"}}, {}, "chosen_shorter"),
        (SHORTER | {"meta": {"source": "correction"}}, {}, "chosen_shorter"),
        (SHORTER | VOTED, {"compared_length_ratio": 0.5}, "chosen_shorter"),
        (SHORTER | VOTED, {"compared_length_ratio": None}, "chosen_shorter"),
        ({"chosen": LONG, "rejected": NEAR}, {}, "similar_answers"),
        ({"chosen": LONG, "rejected": NEAR}, {"similarity": 1.0}, None),
        ({"chosen": LONG, "rejected": NEAR, "meta": {"source": "correction"}}, {}, None),
        ({"chosen": LONG, "rejected": "Turn it off and on."}, {}, None),
    ],
)
def test_length_and_similarity_are_checked_by_setting(
    fields: Any, rules: Any, reason: str | None
) -> None:
    assert refusal(pair(1, **fields), RULES.model_copy(update=rules)) == reason


def test_calls_of_tools_have_no_length_to_compare() -> None:
    turn = Message(role="assistant", content="", tool_calls=(ToolCall(name="look_up"),))
    one = pair(1, chosen='{"name": "x"}', rejected=LONG * 3, chosen_turn=turn)
    assert refusal(one, RULES) is None


@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60))
def test_similarity_is_symmetric_and_1_of_itself(one: str, other: str) -> None:
    assert similarity(one, one) == 1.0
    assert similarity(one, other) == similarity(other, one)
    assert 0.0 <= similarity(one, other) <= 1.0


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three?", 3),
        ("no end", 1),
        ("Pi is 3.14 and so on.", 1),
        ("一。 二。", 2),
        ("...", 1),
    ],
)
def test_sentences_end_where_their_sign_ends_a_word(text: str, count: int) -> None:
    assert sentences(text) == count


def test_a_detailed_different_answer_scores_above_a_near_shorter_one() -> None:
    good, poor = quality_of(LONG, "Turn it off."), quality_of(NEAR[:50], LONG)
    assert good.score > 0.7 > 0.5 > poor.score
    assert (good.detail, poor.detail > 0.5) == (2 / 3, False)


def test_the_card_has_the_quality_of_what_is_trained_on() -> None:
    rules = DatasetRules(heldout_share=0.0, judge_share=0.0)
    pairs = [pair(n, chosen=LONG, rejected=f"Turn it off {n}.") for n in range(5)]
    quality = select_pairs(pairs, [], [], rules).card["quality"]
    assert quality["clear_winner_percent"] == quality["more_detailed_percent"] == 100
    assert 70 < quality["score_percent"] < 100
    older = rules.model_copy(update={"describe_quality": False})
    assert "quality" not in select_pairs(pairs, [], [], older).card


def test_a_manifest_from_before_these_rules_applied_none_of_them() -> None:
    manifest = Manifest.model_validate(
        {
            "model": "assistant", "method": "dpo", "origin": "log", "offsets": {}, "retracted": 0,
            "rules": {"min_chars": 10}, "refused": {}, "card": {}, "files": {},
        }
    )  # fmt: skip
    rules = manifest.rules
    assert (rules.rater_share, rules.similarity, rules.length_ratio) == (1.0, 1.0, 0.0)
    assert rules.compared_length_ratio is None, "votes were held to length_ratio then"
    assert rules.compared_sources == ("vote", "preference"), "imports were, when votes no more were"
    assert (rules.raters.burst, rules.raters.alpha, rules.describe_quality) == (0, 0.0, False)
