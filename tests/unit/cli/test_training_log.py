"""What the training commands read from the event log, and what they write to it."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli import cases, train, train_jobs
from services.cli.errors import CliError
from shared.contracts.events.base import Event, Message
from shared.contracts.events.cases import CaseRetired
from shared.contracts.events.preferences import PairSource, PreferencePair
from shared.contracts.events.training import (
    RunPhase,
    TrainingCancelled,
    TrainingMethod,
    TrainingProgress,
    TrainingRequested,
)
from shared.contracts.topics import CASES, PREFERENCES, TRAINING_JOBS, TRAINING_RUNS, VERSIONS
from shared.errors import RatchetError
from shared.kafka.audit import Requester
from shared.registry.training_jobs import cancel_job
from shared.testing.log import MemoryLog
from tests.support.rollouts import version_record

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ASKED = Requester("kafka-user", "joe", "a drill")


async def publish(log: MemoryLog, topic: str, key: str, *events: Event) -> None:
    for number, event in enumerate(events):
        await log.publish(topic, key=key, event=event, event_id=f"{topic}:{key}:{number}")


def asked(job_id: str) -> TrainingRequested:
    return TrainingRequested(
        job_id=job_id, model="m", method=TrainingMethod.dpo, actor="ann", requested_at=NOW
    )


def told(job_id: str, phase: RunPhase, message: str, **fields: object) -> TrainingProgress:
    return TrainingProgress.model_validate(
        {
            "job_id": job_id,
            "model": "m",
            "method": "dpo",
            "phase": phase,
            "message": message,
            "at": NOW,
            **fields,
        }
    )


@pytest.fixture
async def log() -> MemoryLog:
    made = MemoryLog(partitions={TRAINING_JOBS: 1, TRAINING_RUNS: 1})
    for job_id in ("runs", "ended"):
        await publish(made, TRAINING_JOBS, job_id, asked(job_id))
    await publish(made, TRAINING_RUNS, "runs", told("runs", RunPhase.training, "dpo: step 3 of 9"))
    return made


async def end(log: MemoryLog, uri: str = "") -> None:
    steps = told("ended", RunPhase.training, "dpo: step 9 of 9")
    last = told("ended", RunPhase.rejected, "not improved", report_uri=uri)
    await publish(log, TRAINING_RUNS, "ended", steps, last)


def shown(log: MemoryLog, monkeypatch: pytest.MonkeyPatch, *command: str) -> str:
    """What `ratchet train …` prints, with this log in place of Kafka."""
    monkeypatch.setattr(train_jobs, "with_log", lambda _, work: asyncio.run(work(log)))
    done = CliRunner().invoke(train.app, list(command), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def fields(text: str) -> list[str]:
    """The first column of the table that a command prints first."""
    rows = [line.split("│") for line in text.splitlines() if line.startswith("│")]
    return [cells[1].strip() for cells in rows if len(cells) == 4]


def test_a_job_is_shown_by_what_is_known_of_it_and_json_has_all_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = MemoryLog(partitions={TRAINING_JOBS: 1, TRAINING_RUNS: 1})
    asyncio.run(publish(log, TRAINING_JOBS, "job", asked("job")))
    waiting = shown(log, monkeypatch, "show", "job")
    assert fields(waiting) == [
        *("phase", "model", "method", "seed", "requested_at", "actor", "not there yet"),
    ]
    assert "version, report_uri, checks" in waiting
    check = {"limit": 0.55, "detail": "d"}
    checks = [
        {"name": "judge", "passed": True, "value": 0.7, **check},
        {"name": "win_rate", "passed": False, "value": 0.5, **check},
    ]
    end = told("job", RunPhase.rejected, "no", metrics={"kl": 0.1}, checks=checks, report_uri="r")
    asyncio.run(publish(log, TRAINING_RUNS, "job", end))
    ended = shown(log, monkeypatch, "show", "job")
    assert "not there yet" not in ended
    assert fields(ended)[:3] == ["phase", "message", "report_uri"]
    assert ended.index("win_rate") < ended.index("judge"), "what failed comes first"
    assert ended.index("Gate") < ended.index("Figures") < ended.index("kl")
    found = json.loads(shown(log, monkeypatch, "show", "job", "--json"))
    assert {*TrainingRequested.model_fields} <= {*found}
    assert (found["parent"], found["metrics"]) == ("", {"kl": 0.1})


def test_the_list_of_jobs_has_no_column_without_a_value(
    log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = next(line for line in shown(log, monkeypatch, "list").splitlines() if "┃" in line)
    assert [name.strip() for name in head.split("┃")[1:-1]] == [
        *("job", "model", "method", "phase", "asked", "by", "why"),
    ]


@pytest.mark.parametrize("follow", [False, True])
async def test_a_job_s_log_is_its_own_and_ends_with_it(
    log: MemoryLog, capsys: pytest.CaptureFixture[str], *, follow: bool
) -> None:
    await end(log)
    await train_jobs._logs(log, "ended", follow=follow)
    first, last = capsys.readouterr().out.splitlines()
    assert "dpo: step 9 of 9" in first
    assert "rejected" in last


async def test_a_job_that_said_nothing_has_no_log(log: MemoryLog) -> None:
    with pytest.raises(CliError, match="nothing was said"):
        await train_jobs._logs(log, "nobody", follow=False)


async def test_a_running_job_is_cancelled_on_record(log: MemoryLog) -> None:
    await cancel_job(log, "runs", ASKED, now=NOW)
    event = TrainingCancelled.model_validate_json(log.all(TRAINING_JOBS)[-1].value or b"")
    assert (event.job_id, event.actor, event.reason) == ("runs", "kafka-user", "a drill")


async def test_what_has_ended_or_never_was_is_not_cancelled(log: MemoryLog) -> None:
    await end(log)
    for job_id, said in (("ended", r"has ended \(rejected\)"), ("nobody", "no such job")):
        with pytest.raises(RatchetError, match=said):
            await cancel_job(log, job_id, ASKED, now=NOW)
    assert len(log.all(TRAINING_JOBS)) == 2


async def test_a_rejected_job_s_report_is_found_and_fetched(log: MemoryLog, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<h1>")
    await end(log, f"file://{tmp_path}")
    uri = await train_jobs._report_uri(log, "ended")
    assert train_jobs._fetch(f"{uri}/report.html") == b"<h1>"
    with pytest.raises(CliError, match="cannot be read"):
        train_jobs._fetch(f"{uri}/gone.html")


async def test_a_job_without_a_report_says_how_it_stands(log: MemoryLog) -> None:
    with pytest.raises(CliError, match="runs: has no report; training: dpo: step 3 of 9"):
        await train_jobs._report_uri(log, "runs")


async def test_cases_are_read_and_retired(log: MemoryLog) -> None:
    pair = PreferencePair(
        pair_id="pair-1",
        tenant="default",
        model="m",
        messages=(Message(role="user", content="q"),),
        chosen="right",
        rejected="wrong",
        source=PairSource.correction,
        causes=("f:0",),
        created_at=NOW,
    )
    await publish(log, PREFERENCES, pair.pair_id, pair)
    await cases._retire(log, "pair-1", ASKED._asdict())
    event = CaseRetired.model_validate_json(log.all(CASES)[-1].value or b"")
    assert (event.case_id, event.actor, event.on_behalf_of) == ("pair-1", "kafka-user", "joe")
    (case,) = await cases.read_cases(log)
    assert case.retired == "kafka-user: a drill"
    with pytest.raises(CliError, match="no such case"):
        await cases._retire(log, "pair-2", ASKED._asdict())


async def test_a_record_of_the_registry_that_cannot_be_read_hides_no_other(
    log: MemoryLog,
) -> None:
    await publish(log, VERSIONS, "assistant-v1.0/record", version_record("assistant-v1.0"))
    await publish(log, VERSIONS, "assistant-v1.1/record", version_record("assistant-v1.0"))
    uri = await train_jobs._report_uri(log, "assistant-v1.0")
    assert uri == version_record("assistant-v1.0").adapter_uri
    assert await cases.read_cases(log) == []


@pytest.mark.parametrize(
    ("count", "shown"),
    [(2, "figure0 0.5  figure1 0.5"), (150, "150 figures: ratchet train show j")],
)
def test_a_line_of_progress_has_few_figures(
    count: int, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train_jobs.say_progress(
        TrainingProgress(
            job_id="j",
            model="m",
            method=TrainingMethod.dpo,
            phase=RunPhase.succeeded,
            progress=1,
            metrics={f"figure{number}": 0.5 for number in range(count)},
            at=NOW,
        )
    )
    line = capsys.readouterr().out
    assert line.rstrip().endswith(shown)
    assert len(line) < 120
