"""What the local stack's commands refuse, and what the engine of `up` is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploy.local import commands
from deploy.local.commands import main
from deploy.local.starter import BASE_MODEL, OWN_ENGINE, STARTER_ENGINE, Starter


@pytest.mark.parametrize("command", [("up", "redis"), ("status",), ("down",), ("logs",)])
def test_a_run_directory_that_cannot_be_one_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--run-dir", str(tmp_path / "file"), *command]) == 1
    said = capsys.readouterr().err
    assert "stack: ERROR" in said
    assert str(tmp_path / "file") in said
    assert "--run-dir" in said


@pytest.mark.parametrize("interval", ["often", "", "0s", "5", "1.5s"])
def test_a_scrape_interval_that_is_none_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], interval: str
) -> None:
    monkeypatch.setenv("RATCHET_SCRAPE_INTERVAL", interval)
    with pytest.raises(SystemExit):
        main(["up", "redis"])
    assert "is no interval such as 500ms, 5s or 1m" in capsys.readouterr().err


CONTEXT = "RATCHET_INFERENCE_MAX_CONTEXT"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, {BASE_MODEL: "starter", **STARTER_ENGINE}),
        ({BASE_MODEL: "mine"}, {BASE_MODEL: "mine", **OWN_ENGINE}),
        ({BASE_MODEL: "mine", CONTEXT: "32768"}, {BASE_MODEL: "mine", CONTEXT: "32768"}),
    ],
    ids=["starter", "own", "chosen"],
)
def test_a_model_of_ones_own_is_not_served_with_the_starter_s_context(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: dict[str, str], told: dict[str, str]
) -> None:
    for name in {BASE_MODEL, *OWN_ENGINE, *STARTER_ENGINE}:
        # Set first, so that what `up` puts into the environment is taken back with it.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(commands, "prepare_starter", lambda _: Starter("starter", tmp_path))
    monkeypatch.setattr(commands.Stack, "up", lambda _: None)
    monkeypatch.setattr(commands, "_table", lambda _: None)
    assert main(["--run-dir", str(tmp_path / "stack"), "up"]) == 0
    names = {BASE_MODEL, *OWN_ENGINE, *STARTER_ENGINE}
    assert {name: os.environ[name] for name in names & os.environ.keys()} == told
