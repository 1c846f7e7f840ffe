"""Answers about what operators see and do beside rollouts, as the OpenAPI document has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import AwareDatetime, BaseModel, Field, JsonValue

from shared.contracts.events.api_keys import KeyLimits, Permission
from shared.contracts.events.base import EncryptedTexts
from shared.contracts.events.dead_letters import DeadLetterReason
from shared.contracts.events.versions import DatasetRef, GateCheck
from shared.reports.weekly import Weekly


class FieldDifference(BaseModel):
    """A field of two records, null where one has none."""

    field: str
    first: JsonValue
    second: JsonValue


class VersionDifferences(BaseModel):
    """What differs between two versions' records."""

    first: str
    second: str
    differences: list[FieldDifference]


class TrainingJob(BaseModel):
    """A training job with its newest progress; what only a begun one has may be absent."""

    job_id: str
    model: str
    method: str = Field(description="as a recipe names it: sft, dpo, reward, kto, …")
    algorithm: str
    version: str
    parent: str
    base: str
    dataset_uri: str
    strict: bool
    hyperparameters: dict[str, JsonValue]
    seed: int
    rebuilds: str
    rebases: str
    builds_dataset: bool
    override_gate: bool
    reason: str
    actor: str
    on_behalf_of: str
    requested_at: AwareDatetime
    phase: str = Field(description="waiting, or as TrainingProgress has it")
    message: str
    seconds_left: float | None
    cancellable: bool
    attempt: int | None = None
    progress: float | None = None
    metrics: dict[str, float] | None = None
    checks: list[GateCheck] | None = None
    report_uri: str | None = None
    at: AwareDatetime | None = None


class TrainingJobs(BaseModel):
    """Training jobs, the newest first."""

    jobs: list[TrainingJob]


class UsedDataset(DatasetRef):
    """A dataset, and what was trained on it."""

    model: str
    created_at: AwareDatetime
    erased_rows: int
    used_by: list[str] = Field(description="versions and reward models")


class DatasetList(BaseModel):
    """Datasets, the newest first."""

    datasets: list[UsedDataset]


class DatasetUse(BaseModel):
    """What was trained on a dataset, and how far the data were from its parent; None: not known."""

    name: str
    kind: Literal["version", "reward model"]
    data_on_policy_share: float | None
    data_policy_lag: float | None
    data_age_days: float | None


class DatasetCard(DatasetRef):
    """A dataset with its card, splits and filters, and what was trained on it."""

    model: str
    created_at: AwareDatetime
    erased_rows: int
    used_by: list[DatasetUse]


class KeyView(BaseModel):
    """An API key without its hash."""

    key_id: str
    tenant: str
    scopes: list[Permission]
    explicit_versions: bool
    judge_panel: bool
    own_trace_ids: bool
    approver: bool
    issued_at: AwareDatetime
    name: str
    expires_at: AwareDatetime | None
    limits: KeyLimits
    state: Literal["valid", "expired"]


class KeyList(BaseModel):
    """API keys that were not revoked, the newest first."""

    keys: list[KeyView]


class DeadLetterView(BaseModel):
    """A record that could not be read."""

    place: str = Field(description="topic/partition/offset")
    source_topic: str
    source_partition: int
    source_offset: int
    source_key: str
    reason: DeadLetterReason
    detail: str
    body: str = Field(description="its beginning")
    service: str
    tenant: str | None = None
    subjects: list[str] | None = None
    encrypted: EncryptedTexts | None = None
    at: AwareDatetime
    replayed_at: AwareDatetime | None = Field(description="when it was last replayed; null: never")
    unreadable_again: bool = Field(description="whether it could not be read then either")


class DeadLetterList(BaseModel):
    """Dead letters, the newest first."""

    dead_letters: list[DeadLetterView]


class ErasureProof(BaseModel):
    """What an erasure took away; empty until it is done."""

    completed_at: AwareDatetime | None = None
    traces: int | None = None
    examples: int | None = None
    products: int | None = None


class ErasureView(BaseModel):
    """An erasure of a person."""

    erasure_id: str
    tenant: str
    subject: str
    actor: str
    on_behalf_of: str
    reason: str
    requested_at: AwareDatetime
    state: Literal["requested", "completed"]
    proof: ErasureProof


class ErasureList(BaseModel):
    """Erasures, the newest first."""

    erasures: list[ErasureView]


class QualityTarget(BaseModel):
    """A figure and what it should be."""

    figure: str
    title: str
    direction: str = Field(description="> or <")
    target: float


class QualityFigures(BaseModel):
    """Figures of a day; null where nothing was counted."""

    feedback_rate: float | None
    positive_ratio: float | None
    correction_rate: float | None
    satisfaction: float | None


class QualityDay(BaseModel):
    """A version's day."""

    day: str
    version: str
    requests: int
    errors: float | None
    figures: QualityFigures


class QualityReport(BaseModel):
    """Figures by day, the newest first, against their targets."""

    targets: list[QualityTarget]
    days: list[QualityDay]


@dataclass(frozen=True, kw_only=True)
class WeeklyReport(Weekly):
    """A week's report, and what to do next."""

    actions: list[str] = field(default_factory=list)  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    whole: bool
    """False where the week has more records than were read."""


class StartedJob(BaseModel):
    """A training job that is on record."""

    job_id: str


class CancelledJob(BaseModel):
    """A training job whose cancellation is on record."""

    cancelled: str


class NewApiKey(BaseModel):
    """A new key; no other answer has its secret."""

    key_id: str
    tenant: str
    scopes: list[Permission]
    expires_at: AwareDatetime | None
    key: str = Field(description="the secret")


class RevokedKey(BaseModel):
    """A key that is revoked."""

    revoked: str


class RequestedErasure(BaseModel):
    """An erasure that is on record."""

    erasure_id: str


class ReplayedLetters(BaseModel):
    """How many dead letters were handed back."""

    replayed: int
