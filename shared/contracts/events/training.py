"""Events of training jobs: the request, its progress and its result."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar

from pydantic import AwareDatetime, Field, model_validator

from shared.contracts.events.base import (
    Event,
    Identifier,
    ModelName,
    OptionalIdentifier,
    OptionalName,
)
from shared.contracts.events.versions import DatasetRef, GateCheck


class TrainingMethod(StrEnum):
    """Family of training methods. `dpo` continues a parent, `reward` trains a judge, no version."""

    sft = "sft"
    dpo = "dpo"
    reward = "reward"


class TrainingRequested(Event):
    """A job: make the next version of a model. Key: job_id."""

    ce_type: ClassVar[str] = "ratchet.training.requested.v1"
    job_id: Identifier
    model: ModelName
    method: TrainingMethod
    algorithm: OptionalIdentifier = Field(
        default="",
        description="kto, grpo, rloo, ppo or online_dpo in place of the method's own; only with dpo",
    )
    version: OptionalName = Field(default="", description="name to give; empty: the next one")
    parent: OptionalName = Field(default="", description="empty: the stable version")
    base: OptionalIdentifier = Field(default="", description="hub id or path; empty: the parent's")
    dataset_uri: str = Field(
        default="", max_length=2000, description="JSONL to import; empty: a snapshot of the log"
    )
    strict: bool = Field(
        default=False, description="refuse an import with a bad row instead of leaving it out"
    )
    hyperparameters: dict[str, Any] = Field(default_factory=dict, max_length=64)
    seed: int = 0
    rebuilds: OptionalName = Field(
        default="",
        description="version to make again from its record and compare; publishes nothing",
    )
    rebases: OptionalName = Field(
        default="",
        description="version whose recipe and data are run again on `base`, which need not be the "
        "one that is served; its parent is that one's, made again on this base",
    )
    builds_dataset: bool = Field(
        default=False,
        description="store the dataset that the job would train on, and train nothing",
    )
    override_gate: bool = False
    reason: str = Field(default="", max_length=1000)
    actor: Identifier
    on_behalf_of: str = Field(default="", max_length=200, description="whom the actor names")
    requested_at: AwareDatetime

    @property
    def recipe_method(self) -> str:
        """The name by which a recipe chooses how the job trains."""
        return self.algorithm or self.method.value

    @model_validator(mode="after")
    def _override_has_reason(self) -> TrainingRequested:
        if self.override_gate and not self.reason.strip():
            raise ValueError("reason: required with override_gate, it is kept in the record")
        return self

    @model_validator(mode="after")
    def _does_one_thing(self) -> TrainingRequested:
        if self.builds_dataset and self.rebuilds:
            raise ValueError("builds_dataset: not with rebuilds, which has its dataset already")
        if self.rebases and (self.rebuilds or self.builds_dataset or self.dataset_uri):
            raise ValueError("rebases: alone; data, recipe and parent are those of its version")
        if self.rebases and not self.base:
            raise ValueError("base: required with rebases, it is what the version is made again on")
        return self

    @model_validator(mode="after")
    def _algorithm_continues_a_parent(self) -> TrainingRequested:
        if self.algorithm and self.method is not TrainingMethod.dpo:
            raise ValueError("algorithm: only with the method dpo, whose family it belongs to")
        return self


def method_fields(name: str) -> dict[str, str]:
    """A request's `method` and `algorithm` for the method that a recipe names."""
    if name in {method.value for method in TrainingMethod}:
        return {"method": name}
    return {"method": TrainingMethod.dpo.value, "algorithm": name}


class TrainingCancelled(Event):
    """Cancellation of a job that has not ended. Key: job_id."""

    ce_type: ClassVar[str] = "ratchet.training.cancelled.v1"
    job_id: Identifier
    reason: str = Field(default="", max_length=1000)
    actor: Identifier
    on_behalf_of: str = Field(default="", max_length=200, description="whom the actor names")
    requested_at: AwareDatetime


class RunPhase(StrEnum):
    """Phase of a training run."""

    accepted = "accepted"
    snapshot = "snapshot"
    training = "training"
    judging = "judging"
    gating = "gating"
    succeeded = "succeeded"
    rejected = "rejected"
    failed = "failed"


class TrainingProgress(Event):
    """Progress or result of a job. Key: job_id."""

    ce_type: ClassVar[str] = "ratchet.training.progress.v1"
    job_id: Identifier
    model: Identifier
    method: TrainingMethod
    algorithm: OptionalIdentifier = ""
    version: OptionalIdentifier = ""
    phase: RunPhase
    attempt: int = 1
    progress: float = Field(default=0.0, ge=0.0, le=1.0)
    metrics: dict[str, float] = Field(default_factory=dict)
    message: str = Field(default="", max_length=2000)
    checks: tuple[GateCheck, ...] = Field(
        default=(), description="the gate's, with the result of a job that was put before it"
    )
    report_uri: str = Field(
        default="", max_length=2000, description="folder with report.html and evaluation.json"
    )
    dataset: DatasetRef | None = Field(
        default=None, description="with the result of a job that built a dataset alone"
    )
    at: AwareDatetime
