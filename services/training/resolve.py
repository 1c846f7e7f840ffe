"""Job resolution: fills in what a request leaves open, and refuses what cannot be done. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from services.training.errors import InvalidJob, refusals
from services.training.policy import lineage
from services.training.settings import TrainingSettings
from shared.contracts.events.training import TrainingMethod, TrainingRequested
from shared.contracts.events.versions import RewardRecord, VersionRecord
from shared.contracts.recipes import (
    CONTINUING,
    HYPERPARAMETERS,
    MAX_SEED,
    BadRecipe,
    RewardHyperparameters,
    TrainerHyperparameters,
    check_hyperparameters,
    parse,
)
from shared.registry.job_origin import origin_of
from shared.registry.versions import Registry


@dataclass(frozen=True)
class ResolvedJob:
    """A request with everything it left open filled in."""

    job: TrainingRequested
    base: str
    parent: VersionRecord | None
    hyperparameters: TrainerHyperparameters
    reward: RewardHyperparameters
    first: VersionRecord | None = None
    """The first version of the chain of parents on this base."""
    predecessor: RewardRecord | None = None
    """The newest reward model on the same base, made by another job."""

    @property
    def parent_version(self) -> str:
        """The parent's name, or empty."""
        return self.parent.version if self.parent else ""

    def lineage(self, registry: Registry) -> tuple[str, ...]:
        """The policies that the job goes on from, the nearest first: its parents, then the base.

        SFT goes on from none: its rows are demonstrations.
        """
        if self.job.method is TrainingMethod.sft:
            return ()
        return lineage(self.parent_version, registry, self.base)


def resolve(job: TrainingRequested, registry: Registry, settings: TrainingSettings) -> ResolvedJob:
    """The job with parent, base and hyperparameters decided.

    Raises:
        InvalidJob: names the field, what is wrong with it and what to do.

    """
    with refusals():
        origin = origin_of(job, registry)
    parent, base = origin.parent, origin.base
    hyperparameters, reward = job_hyperparameters(job, settings)
    sft = job.method is TrainingMethod.sft
    return ResolvedJob(
        job,
        base,
        None if sft else parent,
        hyperparameters,
        reward,
        first=None if sft else first_of_chain(parent, base, registry),
        predecessor=predecessor_of(job, base, registry),
    )


def first_of_chain(
    parent: VersionRecord | None, base: str, registry: Registry
) -> VersionRecord | None:
    """The oldest version on this base that the parent descends from, itself where it is that."""
    chain: list[VersionRecord] = []
    while parent is not None and parent.base == base and parent not in chain:
        chain.append(parent)
        parent = registry.adapter(parent.parent) if parent.parent else None
    return chain[-1] if chain else None


def predecessor_of(job: TrainingRequested, base: str, registry: Registry) -> RewardRecord | None:
    """The newest reward model of the job's model on a base that another job made."""
    known = [
        one for one in registry.rewards(job.model) if one.base == base and one.job_id != job.job_id
    ]
    return known[-1] if known else None


def job_hyperparameters(
    job: TrainingRequested, settings: TrainingSettings
) -> tuple[TrainerHyperparameters, RewardHyperparameters]:
    """The method's and the judge's hyperparameters: the job's over the service's.

    Raises:
        InvalidJob: an unknown name or a value out of bounds; names the field and the rule.

    """
    method, own = job.recipe_method, job.hyperparameters
    if job.algorithm and job.algorithm not in CONTINUING:
        raise InvalidJob(f"algorithm: {method} is unknown; known are {', '.join(CONTINUING)}")
    if not 0 <= job.seed <= MAX_SEED:
        raise InvalidJob(f"seed: {job.seed} is out of bounds; give one of 0 to {MAX_SEED}")
    mine = {name: value for name, value in own.items() if name != "reward"}
    judges = own if method == "reward" else own.get("reward", {})
    try:
        check_hyperparameters(method, own)
        reward = parse(RewardHyperparameters, settings.hyperparameters("reward"), judges)
        trained = parse(HYPERPARAMETERS[method], settings.hyperparameters(method), mine)
    except BadRecipe as error:
        raise InvalidJob(str(error)) from None
    if method != "reward" and trained.lora.rank > settings.max_lora_rank:
        raise InvalidJob(
            f"hyperparameters: lora.rank is {trained.lora.rank}; the engine serves "
            f"{settings.max_lora_rank} at most (RATCHET_TRAINING_MAX_LORA_RANK)"
        )
    return trained, reward
