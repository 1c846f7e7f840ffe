"""Trainer job: the files by which the service and a trainer talk.

<attempt>/job.json        TrainerJob, written by the service
<attempt>/progress.jsonl  one StageProgress a line, newest last
<attempt>/<stage>.json    figures of a finished stage; its presence means "done"
<attempt>/checkpoints/    of the method's training, to go on from after a kill
<attempt>/adapter/        the candidate's LoRA
<judge>/                  the evaluation's reward model, shared by a job's attempts
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.training.evaluation import EvaluationSettings
from services.training.generation import GenerationSettings
from services.training.spill import MadeRows
from services.training.trainers import processes
from shared.contracts.recipes import (
    HYPERPARAMETERS,
    MethodName,
    RewardHyperparameters,
    TrainerHyperparameters,
)

Stage = Literal[
    "fit",
    "search",
    "reward",
    "proxy",
    "sft",
    "dpo",
    "kto",
    "grpo",
    "rloo",
    "ppo",
    "online_dpo",
    "evaluate",
    "quality",
    "drift",
    "harness",
    "fingerprint",
]
T = TypeVar("T")
PROGRESS_INTERVAL_S = 0.5
MAX_PREPARING = 200
BUSY = 75
"""A trainer's exit status where another one works in its folder (EX_TEMPFAIL)."""
GIVEN_UP = 65
"""A trainer's exit status where another start would end the same; why is in `failure.txt`."""
FAILURE = "failure.txt"
SEARCH_REQUEST = "request.json"
"""What the stage `search` is asked."""


class CannotTrain(Exception):
    """Starting again would end the same; the message says what was wrong and what to do."""


class TrainingDiverged(CannotTrain):
    """The loss is no finite number."""


class TrainerJob(BaseModel):
    """Everything a trainer needs; paths are on this machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    stages: tuple[Stage, ...]
    base: str
    base_revision: str = Field(default="", description="of the hub; empty: main")
    parent_adapter: str = ""
    first_adapter: str = Field(
        default="", description="of the chain of parents' first version; empty: not there"
    )
    data: str
    judge: str
    nearest: str = Field(
        default="", description="file of the rows that perplexity is of; empty: all held-out rows"
    )
    cases: str = ""
    predecessor: str = Field(default="", description="adapter of the last published reward model")
    predecessor_pairs: str = Field(default="", description="file of the pairs that it learned from")
    method: MethodName = "dpo"
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    reward: RewardHyperparameters
    evaluation: EvaluationSettings
    generation: GenerationSettings = GenerationSettings()
    seed: int
    threads: int = 0
    nice: int = 0
    fingerprint_texts: tuple[str, ...] = ()

    @property
    def trained(self) -> TrainerHyperparameters:
        """The method's hyperparameters."""
        return HYPERPARAMETERS[self.method].model_validate(self.hyperparameters)


class SearchTrial(BaseModel):
    """An attempt as the search hears of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    parameters: dict[str, float]
    shortfall: float = Field(ge=0, description="how far the gate found it from passing")


class SearchRequest(BaseModel):
    """What the stage `search` is asked: the next values of some hyperparameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    space: dict[str, tuple[float, float]] = Field(
        description="lowest and highest value by name; searched by their logarithm"
    )
    trials: tuple[SearchTrial, ...]
    seed: int = Field(ge=0, lt=2**32)


class StageProgress(BaseModel):
    """How far a stage is."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    stage: Stage
    done: int
    total: int
    loss: float | None = None
    preparing: str = Field(
        default="",
        max_length=MAX_PREPARING,
        description="what is done before the next step; `done` of `total` are rows then, tensors "
        "of a load, and a total of 0 is unknown",
    )
    loading_s: float | None = Field(
        default=None, description="of a model that is loaded: seconds since it began"
    )


def noted_steps(lines: bytes) -> list[StageProgress]:
    """Steps of lines of progress.jsonl; one that a full disk cut short is none."""
    found: list[StageProgress] = []
    for line in lines.splitlines():
        with contextlib.suppress(ValidationError):
            found.append(StageProgress.model_validate_json(line))
    return found


class Progress:
    """Writes progress.jsonl, at most twice a second and always at a stage's end.

    Of several processes the first one writes steps. Rows and loads are told of by each, as each has
    its own while the first may wait for it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "progress.jsonl"
        self._last = 0.0

    def report(self, stage: Stage, done: int, total: int, loss: float | None = None) -> None:
        """Note that `done` of `total` steps of the stage are over."""
        now = time.monotonic()
        if processes.rank() or (done < total and now - self._last < PROGRESS_INTERVAL_S):
            return
        self._last = now
        self._write(StageProgress(stage=stage, done=done, total=total, loss=loss))

    def prepare(self, stage: Stage, what: str, done: int, total: int = 0) -> None:
        """Note that `done` of `total` rows are prepared for the stage's next step; 0: unknown."""
        now = time.monotonic()
        if now - self._last >= PROGRESS_INTERVAL_S:
            self._last = now
            what = what[:MAX_PREPARING]
            self._write(StageProgress(stage=stage, done=done, total=total, preparing=what))

    def load(self, stage: Stage, what: str, done: int, total: int, age_s: float) -> None:
        """Note that a model is loaded before the stage's next step, for so many seconds by now.

        `done` of `total` tensors are in place; 0: unknown.
        """
        what = what[:MAX_PREPARING]
        self._write(
            StageProgress(stage=stage, done=done, total=total, preparing=what, loading_s=age_s)
        )

    def counted(self, stage: Stage, what: str, rows: Iterable[T], total: int = 0) -> Iterator[T]:
        """The rows, each told of by `prepare`."""
        for done, row in enumerate(rows, start=1):
            self.prepare(stage, what, done, total)
            yield row

    def _write(self, step: StageProgress) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(step.model_dump_json() + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a JSONL file that is known to be small; none where there is no file."""
    return list(iterate_rows(path))


def iterate_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file, one at a time; none where there is no file."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        yield from (json.loads(line) for line in file if line.strip())


def stored_rows(*paths: Path) -> Collection[dict[str, Any]]:
    """Rows of JSONL files, one file after the other, read whenever they are asked for."""
    return MadeRows(paths, iterate_rows)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that it is there whole or not at all, whatever is killed."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, sort_keys=True, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSONL, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
