"""Datasets as the registry has them: what each is, and which versions and reward models it made. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from shared.contracts.events.versions import RewardRecord, VersionRecord
from shared.registry.versions import Registry

ON_POLICY = ("data_on_policy_share", "data_policy_lag", "data_age_days")
"""Figures of a version's record that say how far its data were from its parent."""


class Training(NamedTuple):
    """What was trained on a dataset."""

    record: VersionRecord | RewardRecord
    name: str
    erased_rows: int
    """Of the data that it was trained on, since."""


def trainings(registry: Registry, dataset_id: str = "") -> Iterator[Training]:
    """Versions and reward models with a dataset, of this id or, empty, of any, as registered."""
    models = dict[str, None]()
    for version in registry.versions():
        models[version.record.model] = None
        if isinstance(version.record, VersionRecord):
            erased = version.marks.erased_rows if version.marks else 0
            yield from _of(dataset_id, Training(version.record, version.record.version, erased))
    for model in models:
        for reward in registry.rewards(model):
            yield from _of(dataset_id, Training(reward, reward.name, 0))


def _of(dataset_id: str, training: Training) -> Iterator[Training]:
    if dataset_id in ("", training.record.dataset.dataset_id):
        yield training


def summarised(training: Training) -> dict[str, Any]:
    """A dataset in a list of them, as one of its trainings has it."""
    record = training.record
    return {
        **record.dataset.model_dump(mode="json", exclude={"splits", "card", "rules"}),
        "model": record.model,
        "created_at": record.created_at.isoformat(),
        "erased_rows": 0,
        "used_by": [],
    }


def carded(found: list[Training]) -> dict[str, Any]:
    """A dataset with its card, and what was trained on it; the newest record's word counts."""
    newest = max(found, key=lambda one: one.record.created_at)
    return {
        **summarised(newest),
        **newest.record.dataset.model_dump(mode="json"),
        "erased_rows": max(one.erased_rows for one in found),
        "used_by": [
            {
                "name": one.name,
                "kind": "version" if isinstance(one.record, VersionRecord) else "reward model",
                **{name: one.record.metrics.get(name) for name in ON_POLICY},
            }
            for one in found
        ],
    }
