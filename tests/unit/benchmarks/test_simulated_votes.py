"""Votes of the learning benchmark's raters and AI judge."""

from __future__ import annotations

import pytest

from benchmarks import learning
from benchmarks.hidden_taste import HiddenTaste
from benchmarks.learning import votes
from deploy.starter import corpus

TASTE = HiddenTaste.drawn(1)
ANSWERS = ("Take 3 steps.", "Take some steps, one after another, and mind each of them well.")
SAMPLES = [(prompt, ANSWERS) for prompt in corpus.prompts_of("serve")[:200]]


def chosen_first(ablation: str) -> float:
    """Share of the training votes for the first answer."""
    rows = votes(SAMPLES, TASTE, ablation, "1/1")["train"]
    return sum(row["chosen"] == ANSWERS[0] for row in rows) / len(rows)


def test_the_ai_judge_never_wavers_and_loves_length(monkeypatch: pytest.MonkeyPatch) -> None:
    people = chosen_first("none")
    assert 0 < people < 1
    assert chosen_first("ai_judge") in {0.0, 1.0}
    monkeypatch.setattr(learning, "AI_LENGTH", 10.0)
    assert chosen_first("ai_judge") == 0.0
    assert 0 < chosen_first("hybrid") < people


def test_what_the_ai_judge_finds_equal_is_dropped_of_training_alone() -> None:
    alike = [(prompt, ("the same", "the same")) for prompt, _ in SAMPLES]
    files = votes(alike, TASTE, "ai_judge", "1/1")
    assert files["train"] == []
    assert files["judge"]
    assert files["heldout"]
