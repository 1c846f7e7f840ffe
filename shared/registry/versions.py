"""Model registry: the fold of `versions.v1`, where each part of a version has one writer.

`<version>/record` is what training made and never changes, `<version>/settings` is in its place
where a version is prompts and settings and `<version>/evaluation` how those answered recorded
prompts, `<version>/state` is where rollout put it, and `<version>/marks` is what erasures said
about it. `<name>/reward` is a reward model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from shared.contracts.events.versions import (
    Lifecycle,
    RewardRecord,
    SettingsEvaluation,
    SettingsRecord,
    VersionMarks,
    VersionRecord,
    VersionState,
)

Part = TypeVar(
    "Part", VersionRecord, SettingsRecord, SettingsEvaluation, VersionState, VersionMarks
)


class Version(BaseModel):
    """Record, evaluation, lifecycle state and marks of one version."""

    model_config = ConfigDict(frozen=True)
    record: VersionRecord | SettingsRecord
    state: VersionState | None = None
    marks: VersionMarks | None = None
    evaluation: SettingsEvaluation | None = None

    @property
    def lifecycle(self) -> Lifecycle:
        """The version's state; `registered` until the rollout service writes another."""
        return self.state.state if self.state else Lifecycle.registered

    @property
    def is_way_back(self) -> bool:
        """Whether it was stable before, and nobody retired it by hand since."""
        return self.lifecycle is Lifecycle.retired and not (self.state and self.state.actor)


class Registry:
    """The fold of `versions.v1`. Feed it every record in log order."""

    def __init__(self) -> None:
        self._records: dict[str, VersionRecord | SettingsRecord] = {}
        self._settings: dict[str, SettingsRecord] = {}
        self._states: dict[str, VersionState] = {}
        self._marks: dict[str, VersionMarks] = {}
        self._evaluations: dict[str, SettingsEvaluation] = {}
        self._rewards: dict[str, RewardRecord] = {}

    def apply(self, key: str, value: bytes | None) -> str | None:
        """Fold one record; returns the version it was about, or None where it was about none.

        A second `record` or `settings` under a name is ignored, as names are never reused. A
        `state` whose token is lower than the last one's is ignored, as its writer had lost its
        leadership.

        Raises:
            pydantic.ValidationError: the value is not of the part's model.
            ValueError: the value is about another version than the key.

        """
        version, _, part = key.rpartition("/")
        match part:
            case "record":
                if value is not None and version not in self._records:
                    self._records[version] = _about(
                        version, VersionRecord.model_validate_json(value)
                    )
            case "settings":
                if value is not None and version not in self._records:
                    settings = _about(version, SettingsRecord.model_validate_json(value))
                    self._records[version] = self._settings[version] = settings
            case "state":
                if value is not None:
                    state = _about(version, VersionState.model_validate_json(value))
                    last = self._states.get(version)
                    if last is None or state.token >= last.token:
                        self._states[version] = state
            case "marks" | "evaluation":
                self._put_newest(version, part, value)
            case "reward":
                self._put_reward(version, value)
                return None
            case _:
                return None
        return version

    def _put_newest(self, version: str, part: str, value: bytes | None) -> None:
        if value is None:
            return
        if part == "marks":
            self._marks[version] = _about(version, VersionMarks.model_validate_json(value))
        else:
            evaluation = SettingsEvaluation.model_validate_json(value)
            self._evaluations[version] = _about(version, evaluation)

    def _put_reward(self, name: str, value: bytes | None) -> None:
        if value is None or name in self._rewards:
            return
        reward = RewardRecord.model_validate_json(value)
        if reward.name != name:
            raise ValueError(f"name: {reward.name!r} under the key of {name!r}")
        self._rewards[name] = reward

    def get(self, version: str) -> Version | None:
        """The version, or None where no record of it is known."""
        record = self._records.get(version)
        if record is None:
            return None
        return Version(
            record=record,
            state=self._states.get(version),
            marks=self._marks.get(version),
            evaluation=self._evaluations.get(version),
        )

    def settings(self, version: str) -> SettingsRecord | None:
        """The record of a version of prompts and settings; None for every other one."""
        return self._settings.get(version)

    def adapter(self, version: str) -> VersionRecord | None:
        """The trained version whose adapter a version serves; None where it serves the base."""
        record = self._records.get(version)
        if isinstance(record, SettingsRecord):
            record = self._records.get(record.adapter_of)
        return record if isinstance(record, VersionRecord) else None

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

    def on_another_base(self, record: VersionRecord | SettingsRecord) -> bool:
        """Whether a version is on another base than its model's stable version, so that the
        engines that serve that one do not serve it.
        """
        stable = self.stable(record.model)
        return stable is not None and record.base != stable.record.base

    def rewards(self, model: str) -> tuple[RewardRecord, ...]:
        """The model's reward models, the newest last."""
        return tuple(one for one in self._rewards.values() if one.model == model)


def _about(version: str, part: Part) -> Part:
    """The part, if its key names the same version: the key is what the fold goes by."""
    if part.version != version:
        raise ValueError(f"version: {part.version!r} under the key of {version!r}")
    return part
