"""Events of the registry: records of versions and reward models, settings with their evaluation,
states, marks.
"""

from __future__ import annotations

from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from shared.contracts.events.base import (
    Event,
    Identifier,
    ModelName,
    Name,
    OptionalIdentifier,
    OptionalName,
    unless_empty,
)
from shared.contracts.names import check_name, check_sha256

MAX_SYSTEM = 32_768
"""Longest system prompt of a version in characters."""


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
    tenants: dict[str, int] = Field(
        default_factory=dict,
        description="rows that each tenant gave; empty: one tenant's, imported, or not known",
    )
    splits: dict[str, int] = Field(
        default_factory=dict,
        description="rows of each file: train, heldout, judge, prompts, left_out; empty: not known",
    )
    card: dict[str, dict[str, int]] = Field(
        default_factory=dict,
        description="counts of what is trained on, by source, category and so on, the most frequent "
        "values of each; empty: not known",
    )
    rules: dict[str, Any] = Field(
        default_factory=dict, description="filters and shares by which rows were chosen"
    )

    @property
    def majority(self) -> tuple[str, float] | None:
        """The tenant that gave more than half of the rows with its share, where several gave some."""
        if len(self.tenants) < 2:
            return None
        tenant, rows = max(self.tenants.items(), key=lambda one: one[1])
        return (tenant, rows / self.rows) if rows > self.rows / 2 else None


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


BaseRevision = Annotated[
    str, Field(max_length=200, description="the hub's commit of the base; empty: unknown")
]
BaseHash = Annotated[
    str,
    Field(
        pattern=r"^([0-9a-f]{64})?$",
        description="over the base's files; engines with other files refuse it; empty: unknown",
    ),
]


class VersionRecord(Event):
    """Immutable record of a trained version, to rebuild and serve it. Key: `<version>/record`."""

    ce_type: ClassVar[str] = "ratchet.version.record.v1"
    version: Name
    model: ModelName
    method: Literal["sft", "dpo"]
    algorithm: OptionalIdentifier = Field(
        default="", description="kto, grpo, rloo, ppo or online_dpo where not the method's own"
    )
    base: str
    base_revision: BaseRevision = ""
    base_sha256: BaseHash = ""
    parent: OptionalName = ""
    rebases: OptionalName = Field(
        default="",
        description="the version on another base whose recipe and data made this one; empty: none",
    )
    adapter_uri: str
    adapter_sha256: Annotated[str, AfterValidator(check_sha256)]
    fingerprint: Fingerprint
    dataset: DatasetRef
    hyperparameters: dict[str, Any] = Field(
        description="as a job takes them: the method's, and the judge's as `reward`"
    )
    judged_with: dict[str, Any] = Field(
        default_factory=dict,
        description="`evaluation` and `gate` settings at the time, and `reward_model`, the published "
        "one that judged; empty: the job's own",
    )
    seed: int
    code_revision: str
    packages: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    gate: GateResult
    job_id: str
    created_at: AwareDatetime


class RequestDefaults(BaseModel):
    """Values of request fields, by their names in the OpenAI chat API; None where it has none."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, description="an extension of vLLM and others")
    min_p: float | None = Field(default=None, ge=0, le=1, description="an extension")
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=2, description="an extension")
    max_tokens: int | None = Field(default=None, ge=1)
    stop: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=16)
    tools: tuple[dict[str, Any], ...] | None = Field(default=None, min_length=1, max_length=128)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None


class ServedSettings(BaseModel):
    """What a version adds to each request, and whose value counts where the client has one too."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    system: str = Field(default="", max_length=MAX_SYSTEM, description="system prompt")
    system_rule: Literal["before", "replace"] = Field(
        default="before",
        description="the system prompt stands before the client's own, or in its place",
    )
    defaults: RequestDefaults = RequestDefaults()
    precedence: Literal["client", "version"] = Field(
        default="client", description="whose value of a field counts where both have one"
    )

    @property
    def system_sha256(self) -> str:
        """SHA-256 of the system prompt in hex; empty where there is none."""
        return sha256(self.system.encode()).hexdigest() if self.system else ""


class SettingsRecord(Event):
    """Immutable record of a version of prompts and settings. Key: `<version>/settings`.

    It serves the adapter of another version, or the base alone: then there is nothing to load and
    no fingerprint, and an engine has verified it once it serves the base under this name.
    """

    ce_type: ClassVar[str] = "ratchet.version.settings.v1"
    version: Name
    model: ModelName
    base: Identifier = Field(description="the base model's name at the engine")
    base_revision: BaseRevision = ""
    base_sha256: BaseHash = ""
    adapter_of: OptionalName = Field(
        default="", description="the trained version whose adapter it serves; empty: the base"
    )
    parent: OptionalName = Field(default="", description="the stable version at its registration")
    settings: ServedSettings = ServedSettings()
    gate: GateResult
    actor: Identifier = Field(description="who was authenticated; callers cannot choose it")
    on_behalf_of: str = Field(default="", max_length=200, description="whom the actor names")
    reason: str = Field(default="", max_length=2000)
    created_at: AwareDatetime


class SettingsEvaluation(Event):
    """Evaluation of a version of settings on recorded prompts. Key: `<version>/evaluation`.

    Both versions answered the same prompts at the engine; the newest evaluation counts.
    """

    ce_type: ClassVar[str] = "ratchet.version.evaluation.v1"
    version: Name
    model: ModelName
    against: Name = Field(description="the stable version that answered the same prompts")
    prompts: int = Field(ge=1, description="recorded prompts that were asked")
    pairs: int = Field(ge=0, description="prompts that both versions answered")
    reward_model: OptionalName = Field(default="", description="empty: none scored the answers")
    gate: GateResult
    actor: Identifier = Field(description="who was authenticated; callers cannot choose it")
    on_behalf_of: str = Field(default="", max_length=200, description="whom the actor names")
    reason: str = Field(default="", max_length=2000)
    at: AwareDatetime


class RewardRecord(Event):
    """Immutable record of a published reward model. Key: `<name>/reward`.

    A reward model is a LoRA and a score head on the base; it answers no prompts, so it has neither
    lifecycle nor fingerprint.
    """

    ce_type: ClassVar[str] = "ratchet.reward.record.v1"
    name: Name
    model: ModelName
    base: str
    base_revision: BaseRevision = ""
    base_sha256: BaseHash = ""
    predecessor: OptionalName = ""
    adapter_uri: str
    adapter_sha256: Annotated[str, AfterValidator(check_sha256)]
    dataset: DatasetRef
    hyperparameters: dict[str, Any]
    seed: int
    code_revision: str
    packages: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(
        description="loss, held-out accuracy, calibration, gain over the predecessor"
    )
    accuracy_by_category: dict[str, float] = Field(default_factory=dict)
    score_deciles: tuple[float, ...] = Field(
        default=(), max_length=9, description="of its scores of held-out answers; empty: not known"
    )
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


class VersionGain(BaseModel):
    """Gain in satisfaction over the version that was stable, on users split at random.

    The interval holds at every look at once with this confidence.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)
    over: Name
    difference: float = Field(ge=-1, le=1, description="mean score minus the stable version's")
    low: float = Field(ge=-1, le=1)
    high: float = Field(ge=-1, le=1)
    confidence: float = Field(gt=0, lt=1)
    scores: float = Field(ge=0, description="scores of the version; both arms have some")
    scores_over: float = Field(ge=0, description="scores of the version that was stable")


class VersionState(Event):
    """Lifecycle state of a version. Key: `<version>/state`."""

    ce_type: ClassVar[str] = "ratchet.version.state.v1"
    version: Name
    model: ModelName
    state: Lifecycle
    rollout: OptionalIdentifier = ""
    reason: str = ""
    holdout: bool = unless_empty(
        default=False, description="held-out users stay on it, so it stays loaded in any state"
    )
    gain: VersionGain | None = unless_empty(
        default=None, description="of its last rollout that ended; empty: an arm had no score"
    )
    actor: OptionalIdentifier = unless_empty(
        default="", description="key of who retired it by hand; empty: it follows from a decision"
    )
    on_behalf_of: OptionalIdentifier = unless_empty(default="", description="whom the actor names")
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


def settings_key(version: str) -> str:
    """Key of a version's settings on `versions.v1`."""
    return f"{version}/settings"


def evaluation_key(version: str) -> str:
    """Key of a version's evaluation on `versions.v1`."""
    return f"{version}/evaluation"


def reward_key(name: str) -> str:
    """Key of a reward model's record on `versions.v1`."""
    return f"{name}/reward"


def state_key(version: str) -> str:
    """Key of a version's state on `versions.v1`."""
    return f"{version}/state"


def marks_key(version: str) -> str:
    """Key of a version's marks on `versions.v1`."""
    return f"{version}/marks"
