"""Votes of the learning benchmark's raters and AI judge, and its plot."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import learning
from benchmarks.hidden_taste import HiddenTaste
from benchmarks.learning import LearntVersion, panels_of, votes
from benchmarks.learning_plot import plot
from benchmarks.training_stages import write
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


def run(*satisfied: float) -> list[LearntVersion]:
    return [
        LearntVersion(f"v1.{n}", {}, value, (0.0, 1.0), (0.6, 0.5, 0.7), (0.6, 0.5, 0.7))
        for n, value in enumerate(satisfied, start=1)
    ]


def test_whole_runs_are_plotted_beside_the_published_figures(tmp_path: Path) -> None:
    assert panels_of(tmp_path) == []
    for seed, versions in (("1", run(3.9, 4.1, 4.4)), ("2", run(3.7, 3.9, 4.2)), ("3", run(3.9))):
        (tmp_path / f"none-{seed}").mkdir()
        rows = [asdict(one) for one in versions]
        write(tmp_path / f"none-{seed}" / learning.RESULTS, rows)
    panels = panels_of(tmp_path)
    assert panels[0].seeds == [[3.5, 3.9, 4.1, 4.4], [3.5, 3.7, 3.9, 4.2]]
    lines = ET.fromstring(plot(panels)).findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2 * (2 + 1 + 1)
