from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.local import starter
from deploy.local.errors import StackError
from deploy.starter.model import Starter

pytestmark = pytest.mark.timeout(20)

Trainer = Callable[[str], Path]


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """Puts a shell script in the trainer's place; returns the file that holds its pid."""

    def put(script: str) -> Path:
        program, pid = tmp_path / "trainer", tmp_path / "pid"
        program.write_text(f"#!/bin/sh\necho $$ > '{pid}'\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setitem(starter.INTERPRETERS, "ml", program)
        return pid

    return put


def assert_gone(pid: Path) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_progress_is_said_and_the_last_line_names_the_model(trainer: Trainer) -> None:
    said: list[str] = []
    found = json.dumps({"model": "/starter/base", "demonstrations": "/starter/sft.jsonl"})
    trainer(f"echo one; echo two; echo '{found}'")
    assert starter.prepare_starter(said.append) == Starter(
        "/starter/base", Path("/starter/sft.jsonl")
    )
    assert said == ["one", "two"]


@pytest.mark.parametrize("output", ["echo step 1", "exec >&-"])
def test_training_that_never_ends_is_given_up_whether_it_talks_or_not(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.setattr(starter, "_TRAINING_S", 1.0)
    pid = trainer(f"{output}; exec sleep 600")
    with pytest.raises(StackError, match=r"deploy\.starter took over 1 s"):
        starter.prepare_starter(lambda _: None)
    assert_gone(pid)


def test_training_that_fails_says_its_exit_status(trainer: Trainer) -> None:
    trainer("exit 3")
    with pytest.raises(StackError, match=r"deploy\.starter ended 3"):
        starter.prepare_starter(lambda _: None)


def test_trainer_ends_with_whoever_was_told_of_its_progress(trainer: Trainer) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    pid = trainer("echo one; echo two; exec sleep 600")
    with pytest.raises(KeyboardInterrupt):
        starter.prepare_starter(interrupted)
    assert_gone(pid)


def test_missing_interpreter_says_what_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(starter.INTERPRETERS, "ml", tmp_path / "nothing")
    with pytest.raises(StackError, match="run make setup"):
        starter.prepare_starter(lambda _: None)
