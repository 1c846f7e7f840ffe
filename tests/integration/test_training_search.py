"""The search of a job's next hyperparameters, by Optuna in the ML environment."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest

from services.training.adjustment import Direction, Tried, search_request, step
from services.training.evaluation import EvaluationSettings
from services.training.process import TrainerProcess, trainer_environment
from services.training.trainers.job import (
    SEARCH_REQUEST,
    SearchRequest,
    StageProgress,
    TrainerJob,
    write_json,
)
from shared.contracts.events.versions import GateCheck, GateResult
from shared.contracts.recipes import DpoHyperparameters, RewardHyperparameters, search_space

ROOT = Path(__file__).resolve().parents[2]
ML_PYTHON = ROOT / ".venv-ml" / "bin" / "python"
RECIPE = DpoHyperparameters()
SPACE = search_space(RECIPE)
SEEDS = 20

pytestmark = pytest.mark.timeout(300)


def short(share: float) -> GateResult:
    """Refused for a win rate that misses its limit by this share."""
    check = GateCheck(name="win_rate", passed=False, value=0.5 * (1 - share), limit=0.5)
    return GateResult(passed=False, checks=(check,))


def attempts(weak: float, strong: float) -> list[Tried]:
    """The recipe, which was too weak, and a bolder attempt, which was too strong."""
    bold = step(RECIPE, Direction.bolder, SPACE)
    return [Tried(RECIPE, "recipe", short(weak)), Tried(bold, "rule", short(strong))]


async def searched(folder: Path, asked: SearchRequest) -> dict[str, float]:
    """What the stage answers, by the service's own way to it."""
    folder.mkdir()
    write_json(folder / SEARCH_REQUEST, asked.model_dump(mode="json"))
    job = TrainerJob(
        stages=("search",),
        base=str(folder),
        data=str(folder),
        judge=str(folder),
        reward=RewardHyperparameters(),
        evaluation=EvaluationSettings(),
        seed=0,
    )
    write_json(folder / "job.json", job.model_dump(mode="json"))
    process = TrainerProcess(python=str(ML_PYTHON), threads=1, stall_s=120, restarts=0)
    await process.run(folder, _unheard, lambda: None)
    return json.loads((folder / "search.json").read_bytes())["parameters"]


async def test_a_search_asked_again_after_a_kill_answers_the_same_and_within_its_bounds(
    tmp_path: Path,
) -> None:
    asked = search_request(attempts(0.3, 0.6), SPACE, seed=3)
    first = await searched(tmp_path / "first", asked)
    again = await searched(tmp_path / "again", asked)
    assert first == again
    assert first.keys() == {"learning_rate", "epochs", "beta"}
    for name, value in first.items():
        low, high = asked.space[name]
        assert low * 0.99 <= value <= high * 1.01, "rounded to three digits"
    assert DpoHyperparameters.model_validate(RECIPE.model_dump() | first) != RECIPE


def test_a_search_leans_to_the_attempt_that_fell_less_short(tmp_path: Path) -> None:
    nearer = {}
    for name, shares in {"weak": (0.1, 0.9), "strong": (0.9, 0.1)}.items():
        asked = [search_request(attempts(*shares), SPACE, seed=seed) for seed in range(SEEDS)]
        rates = [one["learning_rate"] for one in suggestions(tmp_path / name, asked)]
        middle = math.sqrt(RECIPE.learning_rate * RECIPE.learning_rate * 1.5)
        nearer[name] = sum(rate < middle for rate in rates)
    assert nearer["weak"] > SEEDS / 2 > nearer["strong"]


def suggestions(path: Path, asked: list[SearchRequest]) -> list[dict[str, Any]]:
    """An answer to each request, by one process."""
    path.write_text(json.dumps([one.model_dump(mode="json") for one in asked]))
    script = (
        "import json, sys; from services.training.trainers.search import SearchRequest, suggest; "
        "asked = json.load(open(sys.argv[1])); "
        "print(json.dumps([suggest(SearchRequest.model_validate(one)) for one in asked]))"
    )
    done = subprocess.run(
        [ML_PYTHON, "-c", script, path],
        check=True,
        cwd=ROOT,
        env=trainer_environment(threads=1),
        stdout=subprocess.PIPE,
        timeout=120,
    )
    return json.loads(done.stdout)


async def _unheard(step: StageProgress) -> None:
    pass
