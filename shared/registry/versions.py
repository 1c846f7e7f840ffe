"""The registry: the fold of `versions.v1`, where three writers keep three parts of a version.

`<version>/record` is what training made and never changes, `<version>/state` is where rollout
put it, `<version>/marks` is what erasures said about it.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Any, ClassVar, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from shared.contracts.events import Event, Identifier, OptionalIdentifier


class FingerprintText(BaseModel):
    """One fixed text as token ids, and each token's log-probability given those before it.

    The first token has none, so `logprobs` is one shorter than `tokens`. Natural logarithm.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


class Fingerprint(BaseModel):
    """What an adapter answers to eight fixed texts (design invariant 8)."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    dtype: Literal["float32", "bfloat16"]
    texts: tuple[FingerprintText, ...]


class DatasetRef(BaseModel):
    """The snapshot a version was trained on."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    dataset_id: str
    uri: str
    sha256: str
    rows: int
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
    """What the gate said, and who let the version past it when it said no."""

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
    """Everything needed to rebuild and to serve a version. Key: `<version>/record`."""

    ce_type: ClassVar[str] = "ratchet.version.record.v1"
    version: Identifier
    model: Identifier
    method: Literal["sft", "dpo"]
    base: str
    parent: OptionalIdentifier = ""
    adapter_uri: str
    adapter_sha256: str
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
    """Where a version stands. Key: `<version>/state`."""

    ce_type: ClassVar[str] = "ratchet.version.state.v1"
    version: Identifier
    model: Identifier
    state: Lifecycle
    rollout: OptionalIdentifier = ""
    reason: str = ""
    token: int = Field(description="leader token of the writer; lower ones are ignored")
    at: AwareDatetime


class VersionMarks(Event):
    """What later erasures touched of a version's data. Key: `<version>/marks`."""

    ce_type: ClassVar[str] = "ratchet.version.marks.v1"
    version: Identifier
    erased_rows: int = 0
    at: AwareDatetime


class Version(BaseModel):
    """A version as the registry knows it."""

    model_config = ConfigDict(frozen=True)
    record: VersionRecord
    state: VersionState | None = None
    marks: VersionMarks | None = None

    @property
    def lifecycle(self) -> Lifecycle:
        """The version's state; `registered` until rollout says otherwise."""
        return self.state.state if self.state else Lifecycle.registered


class Registry:
    """The fold of `versions.v1`. Feed it every record in log order."""

    def __init__(self) -> None:
        self._records: dict[str, VersionRecord] = {}
        self._states: dict[str, VersionState] = {}
        self._marks: dict[str, VersionMarks] = {}

    def apply(self, key: str, value: bytes | None) -> str | None:
        """Fold one record; returns the version it was about, or None for an unknown part.

        A second `record` under a name is ignored, as names are never reused. A `state` whose
        token is lower than the last one's is ignored, as its writer had lost its leadership.

        Raises:
            pydantic.ValidationError: the value is not of the part's model.

        """
        version, _, part = key.rpartition("/")
        match part:
            case "record":
                if value is not None and version not in self._records:
                    self._records[version] = VersionRecord.model_validate_json(value)
            case "state":
                if value is not None:
                    state = VersionState.model_validate_json(value)
                    last = self._states.get(version)
                    if last is None or state.token >= last.token:
                        self._states[version] = state
            case "marks":
                if value is not None:
                    self._marks[version] = VersionMarks.model_validate_json(value)
            case _:
                return None
        return version

    def get(self, version: str) -> Version | None:
        """The version, or None where no record of it is known."""
        record = self._records.get(version)
        if record is None:
            return None
        return Version(
            record=record, state=self._states.get(version), marks=self._marks.get(version)
        )

    def versions(self, model: str = "") -> Iterator[Version]:
        """All versions (of a model) in the order they were registered."""
        for name, record in self._records.items():
            if not model or record.model == model:
                version = self.get(name)
                assert version is not None
                yield version

    def stable(self, model: str) -> Version | None:
        """The model's stable version, or None before the first one."""
        for version in self.versions(model):
            if version.lifecycle is Lifecycle.stable:
                return version
        return None


def record_key(version: str) -> str:
    """Key of a version's record on `versions.v1`."""
    return f"{version}/record"


def state_key(version: str) -> str:
    """Key of a version's state on `versions.v1`."""
    return f"{version}/state"


def marks_key(version: str) -> str:
    """Key of a version's marks on `versions.v1`."""
    return f"{version}/marks"
