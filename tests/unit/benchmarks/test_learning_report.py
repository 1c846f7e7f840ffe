"""Tables and plot of the learning benchmark, from what runs left in a folder."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import learning
from benchmarks.learning_plot import plot
from benchmarks.learning_report import (
    JUDGED,
    LearntRound,
    misses,
    panels_of,
    pooled,
    released,
    served,
    served_table,
    table,
)
from shared.intervals import wilson

FIGURES = {"judge_accuracy": 0.75, "kl": 0.1, "kl_first": 0.2, "win_rate": 0.57}
FIGURES |= {"capability_items": 354.0, "capability_lost": 18.0, "capability_won": 20.0}
FIGURES |= {"capability_parent": 0.5, "capability_candidate": 0.48}


def run(*satisfied: float, won: float = 0.6, refused: int = 0) -> list[LearntRound]:
    """Released rounds; the one of the number `refused` is a refused one before a second try."""
    low, high = wilson(won * JUDGED, JUDGED)
    rounds: list[LearntRound] = []
    for value in satisfied:
        passes = len(rounds) + 1 != refused
        before = rounds[-1:] if rounds and not rounds[-1].released else []
        rounds.append(
            LearntRound(
                name=f"v1.{len(released(rounds)) + 1}",
                released=passes,
                votes=[*(votes for one in before for votes in one.votes), 290],
                attempts=1 if passes else 2,
                failed=() if passes else ("win_rate", "win_rate_low"),
                figures=FIGURES,
                satisfaction=value,
                gain=(0.2, 0.4),
                wins_first=(won, low, high),
                wins_parent=(won, low, high),
                wins_gate=won,
            )
        )
    return rounds


def test_the_mean_s_win_rate_is_that_of_all_prompts_and_its_interval_is_narrower() -> None:
    one, other = run(4.0), run(3.5, won=0.5)
    (mean,) = pooled([one, other])
    assert mean.satisfaction == 3.75
    assert mean.wins_parent == pytest.approx((0.55, *wilson(0.55 * 2 * JUDGED, 2 * JUDGED)))
    assert mean.gain == pytest.approx((0.3 - 0.1 / 2**0.5, 0.3 + 0.1 / 2**0.5))
    assert mean.figures["passed"] == 1.0


def test_a_refused_round_is_no_version_and_its_votes_count_for_the_next() -> None:
    rounds = run(3.9, 4.1, 4.2, 4.4, refused=2)
    assert [one.name for one in released(rounds)] == ["v1.1", "v1.2", "v1.3"]
    first, second, third = pooled([rounds, run(3.7, 3.9, 4.0)])
    assert [one.satisfaction for one in (first, second, third)] == pytest.approx([3.8, 4.05, 4.2])
    assert second.votes == ((580 + 290) / 2,)
    assert second.figures["passed"] == pytest.approx(2 / 3)
    lines = table({"seed 1": rounds}).splitlines()
    assert lines[3].startswith("| seed 1, v1.2 refused | 4.10 (4.0) |")
    assert lines[3].endswith("| 290 | refuses: win_rate, win_rate_low (2 attempts) |")
    assert lines[4].endswith("| 290 + 290 | passes |")


def test_after_a_refused_round_the_parent_is_served() -> None:
    rounds = run(3.9, 4.1, 4.2, 4.4, refused=2)
    assert served(rounds, 3) == [rounds[0], rounds[0], rounds[2]]
    assert served(run(3.9, refused=1), 3) == [None]
    rows = served_table({1: rounds, 2: run(3.7, 3.9, 4.0)}, 3).splitlines()[2:]
    assert rows == [
        "| 1 | 3.80 (3.8) | 60 % (58 %) |",
        "| 2 | **3.90** (4.0) | **60 %** (62 %) |",
        "| 3 | **4.10** (4.2) | **60 %** (65 %) |",
    ]


def test_what_is_below_the_published_figures_is_bold() -> None:
    first, second = table({"seed 1": run(3.9, 3.95)}).splitlines()[2:]
    assert first.startswith("| seed 1, v1.1 | 3.90 (3.8) | +0.20 to +0.40 | 60 % (58 %) | 60 % (")
    assert second.startswith("| seed 1, v1.2 | **3.95** (4.0) | +0.20 to +0.40 | **60 %** (62 %)")
    assert first.endswith("| 75 % | 57 %, 60 % | 0.10, 0.20 | 50 % to 48 % | 290 | passes |")


def test_goals_are_the_published_figures_the_parent_the_tasks_and_the_votes() -> None:
    assert misses(run(3.8, 4.0, 4.2, won=0.7), "none", 3) == []
    assert misses(run(3.7, won=0.57), "none", 1) == [
        "v1.1: satisfaction 3.8",
        "v1.1: wins of v1.0 58%",
        "v1.1: beats its parent",
    ]
    forgot = [replace(one, figures={**one.figures, "capability_lost": 60.0}) for one in run(3.9)]
    assert misses(forgot, "none", 1) == ["v1.1: keeps its general tasks"]
    assert misses(run(3.9, 3.9, refused=1), "none", 2) == [
        "v1.1: at most 300 votes",
        "v1.2: was not released",
    ]


def test_an_ablation_must_rise_or_must_not_pass() -> None:
    assert misses(run(2.7), "length", 1) == ["v1.1 passed the gate"]
    assert misses(run(2.7, won=0.2, refused=1), "length", 1) == []
    assert misses(run(3.4), "thumbs", 1) == ["satisfaction is 3.40 after 1 rounds"]
    assert misses(run(3.9, refused=1), "noisy", 1) == ["satisfaction is 3.50 after 1 rounds"]
    assert misses(run(3.9, refused=1), "uncapped", 1) == []


def test_runs_are_plotted_beside_the_published_figures() -> None:
    panels = panels_of([run(3.9, 4.1, 4.4), run(3.7, 3.9, 4.2, 4.5, refused=3)], 3)
    assert panels[0].seeds == [[3.5, 3.9, 4.1, 4.4], [3.5, 3.7, 3.9, 3.9]]
    lines = ET.fromstring(plot(panels)).findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2 * (2 + 1 + 1)


def leave(folder: Path, rounds: list[LearntRound]) -> None:
    folder.mkdir(parents=True)
    for number, one in enumerate(rounds, start=1):
        (folder / f"round-{number}.json").write_text(json.dumps(asdict(one)))


def test_one_command_prints_all_that_is_in_a_folder_and_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("benchmarks.training_stages.subprocess.run", refuse)
    leave(tmp_path / "none-1", run(3.9, 4.0, 4.1, 4.3, refused=2))
    leave(tmp_path / "none-2", run(3.9))
    leave(tmp_path / "thumbs-1", run(3.9, 4.1))
    leave(tmp_path / "thumbs-2", run(3.8))
    assert learning.main(["--report", "--folder", str(tmp_path)]) == 1
    rows = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if ", v1" in line]
    assert rows == [
        "| seed 2, not at its end, v1.1",
        "| seed 1, v1.1",
        "| seed 1, v1.2 refused",
        *(f"| seed 1, v1.{number}" for number in (2, 3)),
        *(f"| thumbs, seed 1, v1.{number}" for number in (1, 2)),
        "| thumbs, seed 2, v1.1",
        *(f"| thumbs, mean of 2, v1.{number}" for number in (1, 2)),
    ]
    assert (tmp_path / "learning.svg").exists()
