"""Origin of a training job: parent, base and name, by the registry. Pure.

Who asks for a job refuses by it what cannot be done before rows are converted or a job waits; the
training service decides by it what a job begins with.
"""

# pyright: strict
from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from shared.contracts.events.training import TrainingMethod, TrainingRequested
from shared.contracts.events.versions import VersionRecord
from shared.contracts.names import check_name
from shared.errors import RatchetError
from shared.registry.versions import Registry
from shared.validation import field_refusal

MAX_MODELS = 5
"""Models that a message names."""


class JobRefused(RatchetError):
    """The job cannot be done as it stands; another one can."""

    status = 409
    code = "conflict"
    title = "Job cannot be done"


@dataclass(frozen=True)
class JobOrigin:
    """What a job goes on from."""

    parent: VersionRecord | None
    """The version with an adapter that the parent is or has settings over; None without one: the job
    begins a new adapter on the base."""
    base: str


def every(_: str) -> bool:
    """Whoever asks may see any model."""
    return True


def origin_of(
    job: TrainingRequested, registry: Registry, sees: Callable[[str], bool] = every
) -> JobOrigin:
    """Parent and base of a job: those it names, else the model's stable version and its base.

    Args:
        job: What is asked for.
        registry: All versions.
        sees: Whether a model may be named to who asks.

    Raises:
        JobRefused: names the field, what is wrong with it and what to do.

    """
    named = registry.get(job.parent) if job.parent else registry.stable(job.model)
    if job.parent and (named is None or named.record.model != job.model):
        raise field_refusal(
            JobRefused,
            "parent",
            f"{job.parent} is no version of {job.model}",
            "ratchet versions list has them",
        )
    parent = registry.adapter(named.record.version) if named else None
    base = job.base or (named.record.base if named else "")
    if base:
        require_served_base(base, job.model, registry)
    if job.version and job.method is not TrainingMethod.reward:
        require_free_name(job.version, job.model, _taken(registry))
    if not base:
        raise field_refusal(
            JobRefused,
            "base",
            f"{job.model} has no stable version to take it from{_models(job, registry, sees)}",
            "give a hub id or path",
        )
    return JobOrigin(parent, base)


def require_served_base(base: str, model: str, registry: Registry) -> None:
    """Refuse a base that the model's engines do not run: none of them could serve the adapter.

    Raises:
        JobRefused: the model's stable version is on another base.

    """
    stable = registry.stable(model)
    if stable is not None and stable.record.base != base:
        raise field_refusal(
            JobRefused,
            "base",
            f"{base} is not {stable.record.base}, on which {stable.record.version} is served",
            "leave it out, go to another base by ratchet versions rebase, or train another base "
            "under another model's name",
        )


def require_free_name(wanted: str, model: str, taken: Collection[str]) -> None:
    """Refuse a version's name that is taken or not fit for a folder.

    Raises:
        JobRefused: says which.

    """
    try:
        check_name(wanted)
    except ValueError as error:
        rule = f"{wanted!r} cannot be a version's name: {error}"
        raise field_refusal(JobRefused, "version", rule, "choose another") from error
    if wanted == model:
        rule = f"{wanted!r} cannot be a version's name, it is the model's"
        raise field_refusal(JobRefused, "version", rule, "choose another")
    if wanted in taken:
        rule = f"{wanted} exists and names are never reused"
        raise field_refusal(JobRefused, "version", rule, "take another")


def _taken(registry: Registry) -> set[str]:
    return {version.record.version for version in registry.versions()}


def _models(job: TrainingRequested, registry: Registry, sees: Callable[[str], bool]) -> str:
    """The models that there are to see, where the job's is none of them."""
    known = sorted(filter(sees, {version.record.model for version in registry.versions()}))
    if not known or job.model in known:
        return ""
    return f" and no version at all (there are models {', '.join(known[:MAX_MODELS])})"
