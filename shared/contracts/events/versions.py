"""Events of the registry: a version's record, its state, and the marks of erasures."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from shared.contracts.events.base import Event, ModelName, Name, OptionalIdentifier, OptionalName
from shared.contracts.names import check_name, check_sha256


class FingerprintText(BaseModel):
    """One fixed text as token ids, and each token's log-probability given those before it.

    The first token has none, so `logprobs` is one shorter than `tokens`. Natural logarithm.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


class Fingerprint(BaseModel):
    """Log-probabilities of an adapter on eight fixed texts (design invariant 8)."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    dtype: Literal["float32", "bfloat16"]
    texts: tuple[FingerprintText, ...]


class DatasetRef(BaseModel):
    """Dataset snapshot that a version was trained on."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    dataset_id: Annotated[str, AfterValidator(check_name)]
    uri: str
    sha256: str
    rows: int
    refused: dict[str, int] = Field(
        default_factory=dict, description="rows that were left out, by reason"
    )
    offsets: dict[str, int] = Field(
        default_factory=dict, description="topic/partition -> first offset not read"
    )


class GateCheck(BaseModel):
    """One condition of the release gate."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    name: str
    passed: bool
    value: float | None = None
    limit: float | None = None
    detail: str = ""


class GateResult(BaseModel):
    """Result of the release gate, and who overrode it if it failed."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    passed: bool
    checks: tuple[GateCheck, ...] = ()
    overridden_by: str = ""
    override_reason: str = ""

    @property
    def released(self) -> bool:
        """True where the version may get traffic."""
        return self.passed or bool(self.overridden_by)


class VersionRecord(Event):
    """Immutable record of a version, to rebuild and serve it. Key: `<version>/record`."""

    ce_type: ClassVar[str] = "ratchet.version.record.v1"
    version: Name
    model: ModelName
    method: Literal["sft", "dpo"]
    algorithm: OptionalIdentifier = Field(
        default="", description="kto, grpo or rloo where not the method's own"
    )
    base: str
    parent: OptionalName = ""
    adapter_uri: str
    adapter_sha256: Annotated[str, AfterValidator(check_sha256)]
    fingerprint: Fingerprint
    dataset: DatasetRef
    hyperparameters: dict[str, Any]
    seed: int
    code_revision: str
    packages: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    gate: GateResult
    job_id: str
    created_at: AwareDatetime


class Lifecycle(StrEnum):
    """States of a version."""

    registered = "registered"
    shadow = "shadow"
    canary = "canary"
    stable = "stable"
    retired = "retired"
    rejected = "rejected"


class VersionState(Event):
    """Lifecycle state of a version. Key: `<version>/state`."""

    ce_type: ClassVar[str] = "ratchet.version.state.v1"
    version: Name
    model: ModelName
    state: Lifecycle
    rollout: OptionalIdentifier = ""
    reason: str = ""
    token: int = Field(description="leader token of the writer; lower ones are ignored")
    at: AwareDatetime


class VersionMarks(Event):
    """Rows of a version's training data that were erased later. Key: `<version>/marks`."""

    ce_type: ClassVar[str] = "ratchet.version.marks.v1"
    version: Name
    erased_rows: int = 0
    at: AwareDatetime


def record_key(version: str) -> str:
    """Key of a version's record on `versions.v1`."""
    return f"{version}/record"


def state_key(version: str) -> str:
    """Key of a version's state on `versions.v1`."""
    return f"{version}/state"


def marks_key(version: str) -> str:
    """Key of a version's marks on `versions.v1`."""
    return f"{version}/marks"
