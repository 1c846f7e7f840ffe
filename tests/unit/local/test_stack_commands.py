"""What the local stack's commands refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.commands import main


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
