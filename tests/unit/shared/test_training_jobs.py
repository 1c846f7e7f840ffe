"""Training jobs with their newest progress."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from shared.contracts.events.training import (
    RunPhase,
    TrainingMethod,
    TrainingProgress,
    TrainingRequested,
)
from shared.registry.training_jobs import jobs_of
from shared.reports.weekly_events import training_rows

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def asked(job_id: str, **fields: Any) -> TrainingRequested:
    return TrainingRequested(
        job_id=job_id,
        model="assistant",
        method=TrainingMethod.dpo,
        actor="ann",
        requested_at=NOW,
        **fields,
    )


def progress(job_id: str, phase: RunPhase, **fields: Any) -> TrainingProgress:
    return TrainingProgress(
        job_id=job_id,
        model="assistant",
        method=TrainingMethod.dpo,
        phase=phase,
        at=NOW,
        **fields,
    )


def test_each_job_has_its_phase_version_and_reason() -> None:
    jobs = jobs_of(
        [
            progress("a", RunPhase.training),
            progress("a", RunPhase.succeeded, version="assistant-v1.1", message="the gate passed"),
            progress("b", RunPhase.rejected, message="not improved"),
            asked("a"),
            asked("b", version="assistant-mine"),
            asked("c"),
        ]
    )
    shown = [(job["job_id"], job["phase"], job["version"], job["message"]) for job in jobs]
    assert shown == [
        ("a", "succeeded", "assistant-v1.1", "the gate passed"),
        ("b", "rejected", "assistant-mine", "not improved"),
        ("c", "waiting", "", ""),
    ]


def test_a_final_word_stands_whatever_follows() -> None:
    late = [asked("a"), progress("a", RunPhase.failed), progress("a", RunPhase.training)]
    assert jobs_of(late)[0]["phase"] == "failed"


def test_a_report_names_the_method_that_was_asked_for() -> None:
    rows = training_rows(
        [asked("plain"), asked("thumbs", algorithm="kto")],
        NOW,
        NOW + timedelta(days=7),
        lambda model: model == "assistant",
    )
    assert {row["job"]: row["method"] for row in rows} == {"plain": "dpo", "thumbs": "kto"}
