"""Jobs of recorded versions: a version made again on its own base, or on another. Pure."""

from __future__ import annotations

from dataclasses import replace

from services.training.dataset_manifest import Dataset
from services.training.errors import InvalidJob
from services.training.resolve import (
    ResolvedJob,
    first_of_chain,
    job_hyperparameters,
    predecessor_of,
)
from services.training.settings import TrainingSettings
from shared.contracts.events.training import TrainingRequested, method_fields
from shared.contracts.events.versions import VersionRecord
from shared.registry.versions import Registry

JUDGED_WITH = frozenset({"evaluation", "gate"})
"""Names that records of before `judged_with` kept among the hyperparameters."""


def resolve_rebuild(
    job: TrainingRequested, registry: Registry, settings: TrainingSettings
) -> tuple[ResolvedJob, VersionRecord]:
    """The job that made a version, as its record has it, and the record.

    Raises:
        InvalidJob: no such version of the model, its parent is unknown, or its record has
            hyperparameters that this revision does not know.

    """
    record = recorded(job.rebuilds, job.model, registry, field="rebuilds")
    parent = registry.adapter(record.parent) if record.parent else None
    if record.parent and parent is None:
        raise InvalidJob(f"rebuilds: {record.parent}, the parent of {record.version}, is unknown")
    again = _as_recorded(job, record)
    hyperparameters, reward = job_hyperparameters(again, settings)
    return ResolvedJob(again, record.base, parent, hyperparameters, reward), record


def resolve_rebase(
    job: TrainingRequested, registry: Registry, settings: TrainingSettings
) -> ResolvedJob:
    """The recipe of a version, its data and seed, on another base and from its parent on that base.

    The base need not be the one that is served: no engine of the present base loads what comes of
    it, and no rollout of it begins by itself before the model's stable version is on that base.

    Raises:
        InvalidJob: no such version of the model, it is on the base already, its parent has no
            version on the base, or its record has hyperparameters that this revision does not know.

    """
    record = recorded(job.rebases, job.model, registry, field="rebases")
    if record.base == job.base:
        raise InvalidJob(f"rebases: {record.version} is on {job.base} already")
    parent = _made_again(record.parent, job.base, registry) if record.parent else None
    if record.parent and parent is None:
        raise InvalidJob(
            f"rebases: {record.parent}, the parent of {record.version}, has no version on "
            f"{job.base}; see ratchet train list why, and ask for the chain again"
        )
    again = _as_recorded(job, record)
    hyperparameters, reward = job_hyperparameters(again, settings)
    return ResolvedJob(
        again,
        job.base,
        parent,
        hyperparameters,
        reward,
        first=first_of_chain(parent, job.base, registry),
        predecessor=predecessor_of(job, job.base, registry),
    )


def recorded(version: str, model: str, registry: Registry, *, field: str) -> VersionRecord:
    """The record of a model's trained version that a job's field names.

    Raises:
        InvalidJob: there is none.

    """
    named = registry.get(version)
    record = named.record if named else None
    if not isinstance(record, VersionRecord) or record.model != model:
        raise InvalidJob(f"{field}: {version} is no trained version of {model}")
    return record


def named_anew(dataset: Dataset) -> Dataset:
    """The dataset under the name of its own hash, where an erasure or a release kept an older one.

    No rebuild gives the bytes of one that rows were erased of before others were left out: their
    lines count from after the erasure.
    """
    manifest = dataset.manifest.changed(erased_from="", stored_as="")
    return replace(dataset, manifest=manifest)


def _made_again(version: str, base: str, registry: Registry) -> VersionRecord | None:
    """The newest released version that a version's recipe made on a base."""
    found = [
        one.record
        for one in registry.versions()
        if isinstance(one.record, VersionRecord)
        and (one.record.rebases, one.record.base) == (version, base)
        and one.record.gate.released
    ]
    return found[-1] if found else None


def _as_recorded(job: TrainingRequested, record: VersionRecord) -> TrainingRequested:
    """A job with the method, hyperparameters and seed of a record."""
    own = {name: one for name, one in record.hyperparameters.items() if name not in JUDGED_WITH}
    return TrainingRequested.model_validate(
        job.model_dump()
        | method_fields(record.algorithm or record.method)
        | {"hyperparameters": own, "seed": record.seed}
    )
