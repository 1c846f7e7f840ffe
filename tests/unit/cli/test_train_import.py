"""A new user's first command: another tool's pairs are imported, trained on, judged and reported."""

from __future__ import annotations

import asyncio
import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.datasets import dpo_dataset
from services.cli import train
from services.training.dataset_rows import HELDOUT, JUDGE, PROMPTS, TRAIN
from services.training.dataset_store import read_import
from shared.contracts.events.training import RunPhase, TrainingProgress
from shared.testing.log import MemoryLog

ROWS = 400


@pytest.fixture
def hh(tmp_path: Path) -> Path:
    """Anthropic's form of another product's domain, with one empty answer."""
    path = tmp_path / "hh.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for number in range(ROWS):
            asked = f"\n\nHuman: How do I prune my apple tree number {number}?\n\nAssistant:"
            good = "" if number == 7 else f" Cut branch {number} in late winter, above a bud."
            row = {
                "chosen": f"{asked}{good}",
                "rejected": f"{asked} I cannot say that, sorry {number}.",
            }
            file.write(json.dumps(row) + "\n")
    return path


def followed(
    monkeypatch: pytest.MonkeyPatch, phase: RunPhase, **fields: Any
) -> tuple[list[Any], list[tuple[str, Path]]]:
    """Requests and reports of a command whose job ends like this."""
    asked, reports = list[Any](), list[tuple[str, Path]]()

    async def run_job(_: Any, request: Any, __: Any, timeout_s: float) -> TrainingProgress:
        assert timeout_s > 0, "it is followed to its end"
        asked.append(request)
        return TrainingProgress(
            job_id=request.job_id,
            model=request.model,
            method=request.method,
            phase=phase,
            at=datetime.now(UTC),
            **fields,
        )

    monkeypatch.setattr(train, "run_job", run_job)
    monkeypatch.setattr(train, "with_log", lambda _, work: asyncio.run(work(MemoryLog())))
    monkeypatch.setattr(train, "write_report", lambda name, *, to: reports.append((name, to)))
    return asked, reports


def test_one_command_imports_trains_and_reports(
    hh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, reports = followed(monkeypatch, RunPhase.succeeded, version="assistant-v1.1")
    rows, report = tmp_path / "rows.jsonl", tmp_path / "report.html"
    command = ["--from", str(hh), "--dataset", str(rows), "--report", str(report)]
    done = CliRunner().invoke(train.app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (asked[0].dataset_uri, reports) == (str(rows), [("assistant-v1.1", report)])
    dataset = asyncio.run(dpo_dataset(read_import(str(rows), (str(tmp_path),))))
    counts = {name: dataset.manifest.files[name].rows for name in (TRAIN, HELDOUT, JUDGE, PROMPTS)}
    assert counts[JUDGE] >= 30, "its own rows suffice for the gate"
    assert counts[PROMPTS] >= 50
    assert counts[TRAIN] + counts[HELDOUT] + counts[JUDGE] <= ROWS
    assert counts[TRAIN] > 200


def test_a_refused_job_s_report_is_written_and_the_command_fails(
    hh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, reports = followed(monkeypatch, RunPhase.rejected, report_uri="file:///reports/x")
    command = ["--from", str(hh), "--dataset", str(tmp_path / "rows.jsonl"), "--report", "r.html"]
    assert CliRunner().invoke(train.app, command, catch_exceptions=False).exit_code == 1
    assert reports == [(asked[0].job_id, Path("r.html"))]


def test_where_nothing_was_evaluated_it_is_said_that_there_is_no_report(
    hh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, reports = followed(monkeypatch, RunPhase.rejected)
    command = ["--from", str(hh), "--dataset", str(tmp_path / "rows.jsonl"), "--report", "r.html"]
    ended = CliRunner().invoke(train.app, command, catch_exceptions=False)
    assert (ended.exit_code, reports) == (1, [])
    assert "r.html: not written, as nothing was evaluated" in ended.stderr


def test_where_the_rows_go_must_be_said(hh: Path) -> None:
    refused = CliRunner().invoke(train.app, ["--from", str(hh)])
    assert "--dataset" in str(refused.exception)
