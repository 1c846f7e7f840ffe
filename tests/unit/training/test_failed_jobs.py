"""Jobs that cannot succeed: the final word has cause and cure, and nothing is half-registered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from services.training.trainers.job import GIVEN_UP
from shared.contracts.events.training import RunPhase
from tests.unit.training.builders import request
from tests.unit.training.harness import V10, TrainingHarness

FAILED, REJECTED = RunPhase.failed, RunPhase.rejected
ROWS = 200


@dataclass(frozen=True)
class HopelessJob:
    """A job, what is wrong with it, and the words by which its end must say so."""

    cause: str
    cure: str
    phase: RunPhase = FAILED
    asked: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    rows: Sequence[dict[str, Any]] | None = None
    """Of the import it trains on; None: the log's pairs."""
    trainer: dict[str, Any] | None = None
    """What its trainer does; None: it must not be started."""
    starts: int = 1
    fills_the_disk: bool = False


def answered(number: int, *, label: bool) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"How do I prune tree {number}?"}]
    return {"messages": turns, "completion": f"Cut branch {number} in winter.", "label": label}


def preferred(number: int) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"How do I prune tree {number}?"}]
    return {"messages": turns, "chosen": f"Cut branch {number} in winter.", "rejected": "Yes."}


def gives_up(words: str) -> dict[str, Any]:
    """A trainer that would fail the same way again; its words are those of the real one."""
    return {"exit": GIVEN_UP, "failure": words}


NO_BASE = "base: nowhere does not load: no config.json; give a folder, or a hub id"
NO_TEMPLATE = "base: silent has no chat template; put a chat_template.jinja into its folder"
NO_NUMBER = "dpo: the loss is nan at step 3: training diverged; lower learning_rate"
JOBS = {
    "a name that no method knows": HopelessJob(
        "hyperparameters: learning: unknown name",
        "did you mean learning_rate?",
        asked={"hyperparameters": {"learning": 1}},
    ),
    "a value out of bounds": HopelessJob(
        "hyperparameters: epochs",
        "less than or equal to 100",
        asked={"hyperparameters": {"epochs": 1000}},
    ),
    "a seed that no source of chance takes": HopelessJob(
        "seed: -1 is out of bounds", "give one of 0 to 4294967295", asked={"seed": -1}
    ),
    "a loss that would teach the opposite": HopelessJob(
        "hyperparameters: loss_weights.0",
        "greater than or equal to 0",
        asked={"hyperparameters": {"loss_weights": [-1.0, 0.3]}},
    ),
    "a parent that is no version": HopelessJob(
        "parent: nobody is no version of assistant", "", asked={"parent": "nobody"}
    ),
    "a model that has no version": HopelessJob(
        "base: assistent has no stable version to take it from and no version at all (there are "
        "models assistant)",
        "give a hub id or path",
        asked={"model": "assistent"},
        rows=(),
    ),
    "a base that is no folder": HopelessJob(
        "base: /nowhere is no folder",
        "give a folder with model and tokenizer, or a hub id",
        asked={"model": "other", "method": "sft", "base": "/nowhere"},
        rows=(),
    ),
    "an empty import": HopelessJob("dataset: no rows", "A row is {", rows=()),
    "an import of one pair's side": HopelessJob(
        "line 1: rejected: must be a text",
        "A row is {",
        rows=[{**preferred(n), "rejected": ""} for n in range(ROWS)],
    ),
    "thumbs of one kind": HopelessJob(
        "judge_data 0",
        "thumbs both up and down",
        phase=REJECTED,
        asked={"algorithm": "kto"},
        rows=[answered(number, label=True) for number in range(ROWS)],
    ),
    "a base that does not load": HopelessJob(
        "does not load", "give a folder, or a hub id", trainer=gives_up(NO_BASE)
    ),
    "a tokenizer without a chat template": HopelessJob(
        "has no chat template", "put a chat_template.jinja", trainer=gives_up(NO_TEMPLATE)
    ),
    "a loss that is no number": HopelessJob(
        "the loss is nan at step 3", "lower learning_rate", trainer=gives_up(NO_NUMBER)
    ),
    "a candidate that is no numbers, past the gate": HopelessJob(
        "training diverged",
        "lower learning_rate or max_grad_norm",
        asked={"override_gate": True, "reason": "a drill"},
        trainer={"logprobs": [float("nan")]},
    ),
    "figures that are no numbers": HopelessJob(
        "win_rate no data",
        "lower learning_rate or max_grad_norm",
        phase=REJECTED,
        trainer={"figures": dict.fromkeys(("wins", "ties", "losses"), float("nan"))},
    ),
    "a disk that is full before": HopelessJob(
        "MiB are free below",
        "RATCHET_TRAINING_MIN_FREE_BYTES",
        settings={"min_free_bytes": 2**60},
    ),
    "a disk that its checkpoints fill": HopelessJob(
        "0 MiB are free below",
        "free some, or lower RATCHET_TRAINING_KEEP_JOBS",
        trainer={"exit": 1},
        fills_the_disk=True,
    ),
    "a trainer that always dies": HopelessJob(
        "ended 2 times without a result", "something broke", trainer={"exit": 9}, starts=2
    ),
}


class Usage(NamedTuple):
    """Of a disk, in bytes, as `shutil.disk_usage` tells it."""

    total: int
    used: int
    free: int


def usage_by(harness: TrainingHarness) -> Callable[[Path], Usage]:
    """A disk that the trainer's first start fills."""
    return lambda _: Usage(2**40, 0, 0 if harness.starts else 2**40)


@pytest.mark.parametrize("name", JOBS)
async def test_a_job_that_cannot_succeed_says_why_and_registers_nothing(
    name: str, harness: TrainingHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = JOBS[name]
    asked = dict(job.asked)
    if job.rows is not None:
        path = harness.folder / "import.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in job.rows))
        asked["dataset_uri"] = str(path)
    harness.plan(job.trainer or {})
    if job.fills_the_disk:
        monkeypatch.setattr(shutil, "disk_usage", usage_by(harness))
    outcome = await harness.run(request(**asked), **job.settings)

    last = harness.progress()[-1]
    assert (outcome.phase, last.phase) == (job.phase, job.phase), outcome.message
    assert last.message == outcome.message
    assert job.cause in last.message
    assert job.cure in last.message
    assert len(harness.starts) == (job.starts if job.trainer else 0)
    assert [record.version for record in harness.records()] == [V10]
    known = {V10, *(reward.name for reward in harness.rewards())}
    assert {path.name for path in (harness.folder / "adapters").iterdir()} == known
    ended = [event.phase for event in harness.progress() if event.phase in (FAILED, REJECTED)]
    assert ended == [job.phase], "one final word"


async def test_a_parent_whose_adapter_is_broken_is_told_of_before_rows_are_taken(
    harness: TrainingHarness,
) -> None:
    (harness.folder / "adapters" / V10 / "adapter_model.safetensors").write_bytes(b"others")
    outcome = await harness.run(request(dataset_uri="a file that is not there"))
    assert outcome.phase is FAILED
    assert f"adapters/{V10}" in outcome.message
    assert "dataset_uri" not in outcome.message
