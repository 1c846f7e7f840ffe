"""A new user's first command: another tool's pairs are imported, trained on, judged and reported."""

from __future__ import annotations

import asyncio
import errno
import gzip
import io
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.datasets import dpo_dataset
from services.cli import dataset_convert, train
from services.cli.errors import CliError, Exit
from services.training.dataset_rows import HELDOUT, JUDGE, PROMPTS, TRAIN
from services.training.dataset_store import read_import
from shared.contracts.events.training import RunPhase, TrainingProgress
from shared.contracts.events.versions import Lifecycle, record_key, state_key
from shared.contracts.topics import TRAINING_JOBS, VERSIONS
from shared.errors import RatchetError
from shared.testing.log import MemoryLog
from tests.unit.training.builders import record, state

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
    use_log(monkeypatch, stocked())
    monkeypatch.setattr(train, "write_report", lambda name, *, to: reports.append((name, to)))
    return asked, reports


def stocked() -> MemoryLog:
    """A log on which the model's v1.0 is stable."""
    log, version = MemoryLog(), "assistant-v1.0"
    kept = {
        record_key(version): record(version),
        state_key(version): state(version, Lifecycle.stable),
    }
    for key, event in kept.items():
        asyncio.run(log.publish(VERSIONS, key=key, event=event, event_id=key))
    return log


def use_log(monkeypatch: pytest.MonkeyPatch, log: MemoryLog) -> None:
    """Have the command talk to this log; what is refused ends it as it does with Kafka."""

    def with_log(_: Any, work: Callable[[MemoryLog], Any]) -> Any:
        try:
            return asyncio.run(work(log))
        except RatchetError as error:
            raise CliError(error.detail, Exit.refused) from None

    monkeypatch.setattr(train, "with_log", with_log)


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


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_job_that_cannot_be_done_is_refused_before_its_rows_are_converted(
    hh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    asked, _ = followed(monkeypatch, RunPhase.succeeded)
    rows = tmp_path / "rows.jsonl"
    command = ["--from", str(hh), "--dataset", str(rows), "--method", method, "--report", "r.html"]
    refused = CliRunner().invoke(train.app, [*command, "--model", "asistant"])
    error = refused.exception
    assert isinstance(error, CliError)
    assert error.status is Exit.refused
    assert "no version at all (there are models assistant)" in str(error)
    assert (asked, rows.exists()) == ([], False)


def test_what_a_job_that_has_not_ended_may_make_is_not_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = MemoryLog()
    use_log(monkeypatch, log)
    command = ["--model", "new", "--method"]
    first = CliRunner().invoke(train.app, [*command, "sft", "--base", "b"], catch_exceptions=False)
    assert first.exit_code == 0
    second = CliRunner().invoke(train.app, [*command, "dpo"], catch_exceptions=False)
    assert second.exit_code == 0, "the first one makes its parent"
    assert len(log.all(TRAINING_JOBS)) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--report", "nowhere/r.html"], "--report nowhere/r.html: there is no folder nowhere"),
        (["--report", "."], "--report .: is a folder"),
        (["--dataset", "nowhere/rows.jsonl"], "--dataset nowhere/rows.jsonl: there is no folder"),
        (["--method", "sft"], "sft learns from demonstrations"),
        (["--from", "nowhere.jsonl"], "--from nowhere.jsonl: is no file"),
    ],
)
def test_what_would_fail_at_its_end_is_refused_at_once(
    hh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    asked, _ = followed(monkeypatch, RunPhase.succeeded)
    monkeypatch.chdir(tmp_path)
    command = ["--from", str(hh), "--dataset", "rows.jsonl", "--report", "r.html", *options]
    refused = CliRunner().invoke(train.app, command)
    assert isinstance(refused.exception, CliError)
    assert words in str(refused.exception)
    assert (asked, (tmp_path / "rows.jsonl").exists()) == ([], False)


def test_a_disk_without_room_for_the_rows_is_told_of_before_they_are_read(
    hh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, _ = followed(monkeypatch, RunPhase.succeeded)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    command = ["--from", str(hh), "--dataset", str(tmp_path / "rows.jsonl")]
    refused = CliRunner().invoke(train.app, command)
    assert "0 MiB are free in" in str(refused.exception)
    assert asked == []


def test_a_disk_that_the_rows_fill_is_named_with_the_file_that_is_written(
    hh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed(monkeypatch, RunPhase.succeeded)
    monkeypatch.setattr(dataset_convert, "open_compressed", lambda *_: FullFile())
    rows = tmp_path / "rows.jsonl"
    refused = CliRunner().invoke(train.app, ["--from", str(hh), "--dataset", str(rows)])
    assert f"{rows}: was not written, as {tmp_path} is full" in str(refused.exception)


class FullFile(io.BytesIO):
    """A file on a full disk."""

    def write(self, _: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")
