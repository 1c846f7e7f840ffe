"""MLflow tracking beside a job: what is handed over, and that no tracker ever stops a job."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path
from typing import Any

import pytest

from services.training import tracking
from services.training.candidate import losses
from services.training.tracking import MAX_POINTS, curves
from services.training.workspace import Workspace
from shared.contracts.events.training import RunPhase
from tests.unit.training.builders import MODEL, request
from tests.unit.training.harness import TrainingHarness


def tracked(harness: TrainingHarness, script: str) -> dict[str, Any]:
    """Settings with a tracker of straw: a shell script that gets the folder as its last argument."""
    path = harness.folder / "mlflow-python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"mlflow_tracking_uri": "http://tracker", "mlflow_python": str(path)}


def counted(harness: TrainingHarness) -> tuple[float, float]:
    values = [harness.metrics.tracked.labels(one)._value.get() for one in ("logged", "failed")]
    return values[0], values[1]


async def test_a_job_is_handed_over_with_its_parameters_curves_figures_and_files(
    harness: TrainingHarness,
) -> None:
    outcome = await harness.run(request(), **tracked(harness, "exit 0"))
    place = Workspace(harness.folder / "state/training/jobs", "job").folder / "tracking"
    told = json.loads((place / "run.json").read_bytes())
    assert (told["experiment"], told["name"]) == (f"ratchet/{MODEL}", outcome.version)
    assert (told["registered_model"], told["version"]) == (MODEL, f"{MODEL}-v1.1")
    assert (told["params"]["method"], told["params"]["beta"]) == ("dpo", 0.1)
    assert told["metrics"]["win_rate"] == pytest.approx(0.775)
    assert told["status"] == "FINISHED"
    files = {path.name for path in (place / "artifacts").iterdir()}
    assert {"report.html", "evaluation.json", "adapter_model.safetensors"} <= files
    assert counted(harness) == (1, 0)


async def test_a_refused_job_is_handed_over_with_what_its_nearest_attempt_was_trained_with(
    harness: TrainingHarness,
) -> None:
    harness.plan({"figures": {"wins": 105.0, "losses": 95.0}}, {"drift": {"kl": 3.0}})
    outcome = await harness.run(request(), **tracked(harness, "exit 0"))
    folder = Workspace(harness.folder / "state/training/jobs", "job")
    told = json.loads((folder.folder / "tracking" / "run.json").read_bytes())
    assert outcome.attempt == 1
    assert (
        told["params"]["learning_rate"]
        == harness.trainer_job("job")["hyperparameters"]["learning_rate"]
    )
    assert [path.name for path in folder.attempts()] == ["attempt-1", "attempt-2"]
    folder.attempt(10)
    assert folder.attempts()[-1].name == "attempt-10"


async def test_a_tracker_that_fails_is_counted_and_stops_nothing(harness: TrainingHarness) -> None:
    outcome = await harness.run(request(), **tracked(harness, "echo away >&2; exit 1"))
    assert outcome.phase is RunPhase.succeeded
    assert counted(harness) == (0, 1)


async def test_a_tracker_that_hangs_is_ended(
    harness: TrainingHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "TIMEOUT_S", 0.5)
    outcome = await harness.run(request(), **tracked(harness, "exec sleep 60"))
    assert outcome.phase is RunPhase.succeeded
    assert counted(harness) == (0, 1)


async def test_without_a_tracking_uri_nothing_is_handed_over(harness: TrainingHarness) -> None:
    await harness.run(request())
    assert counted(harness) == (0, 0)


def test_curves_are_losses_by_step_and_bounded(tmp_path: Path) -> None:
    lines = [{"stage": "dpo", "done": n, "total": 2000, "loss": 1 / (n + 1)} for n in range(2000)]
    lines.append({"stage": "evaluate", "done": 1, "total": 1, "loss": None})
    (tmp_path / "progress.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    found = curves([tmp_path])
    assert len(found) == MAX_POINTS
    assert found[1] == {"name": f"{tmp_path.name}/dpo_loss", "step": 4, "value": 0.2}


def test_losses_of_a_killed_training_rise_by_step_and_leave_a_torn_line_out(tmp_path: Path) -> None:
    noted = [(1, 0.9), (2, 0.8), (3, 0.7), (2, 0.81), (3, 0.71), (4, math.nan), (5, 0.6)]
    lines = [json.dumps({"stage": "dpo", "done": n, "total": 5, "loss": x}) for n, x in noted]
    torn = lines[2][:20] + lines[3]  # the disk was full, and the next start went on behind it
    (tmp_path / "progress.jsonl").write_text("\n".join([*lines, torn]) + "\n")
    assert losses(tmp_path, 200) == {"dpo": [(1, 0.9), (2, 0.81), (3, 0.71), (5, 0.6)]}
