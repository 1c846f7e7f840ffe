"""A chain asked for on another base: what is shown first, what is asked, what is left out."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from services.cli import version_compare, version_rebase
from services.cli.errors import CliError
from services.cli.version_rebase import rebase_chain, successors
from shared.contracts.events.training import TrainingRequested
from shared.contracts.topics import TRAINING_JOBS
from shared.testing.log import MemoryLog

BASE = "Qwen/Qwen3-1.7B"


def record(version: str, **changes: Any) -> dict[str, Any]:
    return {
        "version": version,
        "model": "assistant",
        "method": "dpo",
        "base": "Qwen/Qwen2-1.5B",
        "parent": "",
        "adapter_uri": "file:///a",
        "dataset": {"dataset_id": f"d-{version}", "rows": 7},
        "seed": 3,
        **changes,
    }


CHAIN = {
    "v1.0": record("v1.0", method="sft"),
    "v1.1": record("v1.1", parent="v1.0"),
    "v1.2": record("v1.2", parent="v1.1", algorithm="kto"),
}


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> MemoryLog:
    log = MemoryLog(partitions={TRAINING_JOBS: 1})
    monkeypatch.setattr(version_compare, "record_of", CHAIN.__getitem__)
    monkeypatch.setattr(version_rebase, "with_log", lambda _, work: asyncio.run(work(log)))
    of_model: dict[str, Any] = {"versions": []}
    monkeypatch.setattr(version_rebase, "ask", lambda *_, **__: of_model)
    return log


def asked(log: MemoryLog) -> list[TrainingRequested]:
    return [
        TrainingRequested.model_validate_json(one.value or b"") for one in log.all(TRAINING_JOBS)
    ]


def test_without_yes_the_chain_is_shown_and_nothing_asked(
    log: MemoryLog, capsys: pytest.CaptureFixture[str]
) -> None:
    rebase_chain("v1.2", base=BASE)
    shown = capsys.readouterr().out
    assert "nothing was asked for; --yes asks for 3 jobs" in shown
    assert shown.index("d-v1.0") < shown.index("d-v1.1") < shown.index("d-v1.2")
    assert asked(log) == []


def test_one_job_a_version_is_asked_for_the_first_in_front(log: MemoryLog) -> None:
    rebase_chain("v1.2", base=BASE, yes=True, reason="a better base", on_behalf_of="ana")
    jobs = asked(log)
    assert [(job.rebases, job.recipe_method) for job in jobs] == [
        ("v1.0", "sft"),
        ("v1.1", "dpo"),
        ("v1.2", "kto"),
    ]
    assert {(job.base, job.reason, job.on_behalf_of) for job in jobs} == {
        (BASE, "a better base", "ana")
    }


def test_what_is_made_or_under_way_is_not_asked_for_again(
    log: MemoryLog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rebase_chain("v1.1", base=BASE, yes=True)
    made = {"version": "v2.0", "rebases": "v1.0", "base": BASE, "released": True}
    monkeypatch.setattr(version_rebase, "ask", lambda *_, **__: {"versions": [made]})
    capsys.readouterr()
    rebase_chain("v1.2", base=BASE, yes=True, as_json=True)
    assert [job["rebases"] for job in json.loads(capsys.readouterr().out)["jobs"]] == ["v1.2"]
    rebase_chain("v1.2", base=BASE)
    shown = capsys.readouterr().out
    assert "v2.0" in shown
    assert "waiting" in shown
    assert "nothing to ask for" in shown


def test_a_base_that_it_is_on_is_refused(log: MemoryLog) -> None:
    with pytest.raises(CliError, match=r"v1\.2 is on it already"):
        rebase_chain("v1.2", base="Qwen/Qwen2-1.5B", yes=True)
    assert asked(log) == []


def test_only_released_versions_on_that_base_are_successors() -> None:
    made = {"version": "v2.0", "rebases": "v1.0", "base": BASE, "released": True}
    others = [
        {**made, "version": "v3.0", "base": "third"},
        {**made, "version": "v4.0", "released": False},
        {**made, "version": "v1.0", "rebases": ""},
    ]
    assert successors([made, *others], BASE) == {"v1.0": "v2.0"}
