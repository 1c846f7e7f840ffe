"""The trainer's own process: whose child it is, and who else works in its folder."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from services.training.evaluation import EvaluationSettings
from services.training.process import ROOT, TrainerProcess
from services.training.trainers.job import BUSY, TrainerJob
from shared.contracts.recipes import RewardHyperparameters
from tests.support.waiting import wait_until

TRAINER = [sys.executable, "-m", "services.training.trainers.run"]


def attempt(folder: Path) -> Path:
    job = TrainerJob(
        stages=("fingerprint",),
        base="nowhere",
        data="",
        judge="",
        reward=RewardHyperparameters(),
        evaluation=EvaluationSettings(),
        seed=0,
    )
    (folder / "job.json").write_text(job.model_dump_json())
    return folder


def test_it_ends_when_its_service_died_before_it_was_up(tmp_path: Path) -> None:
    """The shell stands for a service: it starts a trainer and is gone before that one looks."""
    folder = attempt(tmp_path)
    script = '(while kill -0 $$ 2>/dev/null; do sleep 0.05; done; "$@" $$; echo "status $?") &'
    output = tmp_path / "output"
    with output.open("w") as file:
        subprocess.run(
            ["sh", "-c", script, "service", *TRAINER, folder],
            check=True,
            cwd=ROOT,
            stdout=file,
            stderr=file,
        )
    wait_until(lambda: "status" in output.read_text(), "the trainer ends")
    assert "that service is gone\nstatus 1\n" in output.read_text()
    assert not (folder / "lock").exists()


def test_a_child_of_its_service_sees_that_another_works_in_the_folder(tmp_path: Path) -> None:
    folder = attempt(tmp_path)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            [*TRAINER, folder, str(os.getpid())],
            check=False,
            cwd=ROOT,
            capture_output=True,
            timeout=30,
        )
    assert done.returncode == BUSY
    assert b"another trainer works here" in done.stderr


def test_several_processes_are_started_by_a_launcher_that_ends_with_its_service_too(
    tmp_path: Path,
) -> None:
    trainer = TrainerProcess(
        python=sys.executable, threads=0, stall_s=1, restarts=0, accelerate="ddp.yaml"
    )
    command = trainer.command(tmp_path)
    assert command[2:] == [
        "services.training.trainers.launch",
        str(tmp_path),
        str(os.getpid()),
        str(Path("ddp.yaml").resolve()),
    ]
    command[4] = "1"
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, timeout=30)
    assert done.returncode == 1
    assert b"no child of process 1: that service is gone" in done.stderr
