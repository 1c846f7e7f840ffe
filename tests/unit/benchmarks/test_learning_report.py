"""Tables and plot of the learning benchmark, from what runs left in a folder."""

from __future__ import annotations

import json
import random
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import learning
from benchmarks.learning_plot import plot
from benchmarks.learning_report import JUDGED, LearntVersion, panels_of, pooled, table
from benchmarks.training_stages import write
from deploy.starter import corpus
from shared.intervals import wilson

FIGURES = {"judge_agreed": 30.0, "judge_tested": 40.0, "kl": 0.1, "kl_first": 0.2}
FIGURES |= {"capability_items": 354.0, "capability_lost": 18.0, "capability_won": 20.0}
FIGURES |= {"capability_parent": 0.5, "capability_candidate": 0.48}
WON, LOST = (
    {"wins": 90.0, "ties": 10.0, "losses": 50.0},
    {"wins": 70.0, "ties": 0.0, "losses": 80.0},
)


def run(*satisfied: float, won: float = 0.6) -> list[LearntVersion]:
    low, high = wilson(won * JUDGED, JUDGED)
    figures = FIGURES | (WON if won > 0.5 else LOST)
    return [
        LearntVersion(f"v1.{n}", figures, value, (0.2, 0.4), (won, low, high), (won, low, high))
        for n, value in enumerate(satisfied, start=1)
    ]


def test_the_mean_s_win_rate_is_that_of_all_prompts_and_its_interval_is_narrower() -> None:
    one, other = run(4.0), run(3.5, won=0.5)
    (mean,) = pooled([one, other])
    assert mean.satisfaction == 3.75
    assert mean.wins_parent == pytest.approx((0.55, *wilson(0.55 * 2 * JUDGED, 2 * JUDGED)))
    assert mean.gain == pytest.approx((0.3 - 0.1 / 2**0.5, 0.3 + 0.1 / 2**0.5))
    assert mean.figures["passed"] == 0.5


def test_what_is_below_the_published_figures_is_bold() -> None:
    first, second = table({"seed 1": run(3.9, 3.95)}).splitlines()[2:]
    assert first.startswith("| seed 1, v1.1 | 3.90 (3.8) | +0.20 to +0.40 | 60 % (58 %) | 60 % (")
    assert second.startswith("| seed 1, v1.2 | **3.95** (4.0) | +0.20 to +0.40 | **60 %** (62 %)")
    assert first.endswith("| 75 % | 0.10, 0.20 | 50 % to 48 % | passes |")


def test_goals_are_the_published_figures_the_parent_the_tasks_and_what_must_not_pass() -> None:
    assert learning.misses(run(3.8, 4.0, 4.2, won=0.7), "none") == []
    assert learning.misses(run(3.7, won=0.57), "none") == [
        "v1.1: satisfaction 3.8",
        "v1.1: wins of v1.0 58%",
        "v1.1: beats its parent",
    ]
    forgot = [replace(one, figures={**one.figures, "capability_lost": 60.0}) for one in run(3.9)]
    assert learning.misses(forgot, "none") == ["v1.1: keeps its general tasks"]
    assert learning.misses(run(2.7), "length") == ["v1.1 passed the gate"]
    assert learning.misses(run(2.7, won=0.2), "length") == []
    assert learning.misses(run(3.4), "thumbs") == ["satisfaction fell to 3.40"]


def test_runs_are_plotted_beside_the_published_figures() -> None:
    panels = panels_of([run(3.9, 4.1, 4.4), run(3.7, 3.9, 4.2)])
    assert panels[0].seeds == [[3.5, 3.9, 4.1, 4.4], [3.5, 3.7, 3.9, 4.2]]
    lines = ET.fromstring(plot(panels)).findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2 * (2 + 1 + 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a whole run of seed 1, a stopped one of seed 2 and an ablation leave behind."""
    for seed, done in (("1", 3), ("2", 1)):
        leave(tmp_path / f"first-{seed}/v1.0", "sft")
        for name in ("measure", "samples"):
            answered(tmp_path / f"first-{seed}" / name, seed)
        ran(tmp_path / f"none-{seed}", "dpo", done)
    ran(tmp_path / "thumbs-1", "kto", 2)
    ran(tmp_path / "thumbs-2", "kto", 1)
    return tmp_path


def ran(folder: Path, method: str, iterations: int) -> None:
    for number in range(1, iterations + 1):
        leave(folder / f"v1.{number}", method, "evaluate", "drift")
        leave(folder / f"v1.{number}/judge", "reward")
        answered(folder / f"measure-{number}", folder.name)
        answered(folder / f"samples-{number + 1}", folder.name)


def leave(folder: Path, *stages: str) -> None:
    folder.mkdir(parents=True)
    for stage in stages:
        (folder / f"{stage}.json").write_text(json.dumps(FIGURES | WON))


def answered(folder: Path, seed: str) -> None:
    leave(folder, "evaluate")
    chance = random.Random(f"{folder.name}/{seed}")
    prompts = chance.choices(corpus.prompts_of("eval"), k=2 * learning.ASKED)
    polite = corpus.Mix(polite=0.5, blunt=0.5)
    rows = [{"candidate": corpus.answer(prompt, polite, chance)} for prompt in prompts]
    size = JUDGED if folder.name.startswith("measure") else len(rows)
    write(folder / "answers.jsonl", rows[:size])


def test_one_command_prints_all_that_is_in_a_folder_and_trains_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a stage was started")

    monkeypatch.setattr("benchmarks.training_stages.run", refuse)
    learning.main(["--report", "--folder", str(folder)])
    rows = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if ", v1" in line]
    assert rows == [
        *(f"| seed 1, v1.{number}" for number in (1, 2, 3)),
        *(f"| thumbs, seed 1, v1.{number}" for number in (1, 2)),
        "| thumbs, seed 2, v1.1",
        "| thumbs, mean of 2, v1.1",
    ]
    assert (folder / "learning.svg").exists()
