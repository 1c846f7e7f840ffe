"""Reward models as a product: a job's judge, published under a name with its measures.

A judge that does not agree with raters it never saw is not published: it would score no better than
a coin. Nor is one that agrees with fewer votes than the last one does of the same.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from services.training.base_files import base_identity
from services.training.candidate import judge_figures
from services.training.dataset_manifest import Dataset
from services.training.gate import GateLimits
from services.training.metrics import TrainingMetrics
from services.training.process import ROOT
from services.training.publish import adapter_files, store
from services.training.resolve import ResolvedJob
from services.training.settings import TrainingSettings
from services.training.trainers.agreement import predecessor_judges
from services.training.workspace import Workspace
from shared.clock import Clock
from shared.contracts.events.versions import RewardRecord, reward_key
from shared.contracts.topics import VERSIONS
from shared.intervals import wilson
from shared.kafka.log import EventLog
from shared.registry.follow import RegistryFollower
from shared.registry.versions import Registry
from shared.revision import code_revision

log = structlog.get_logger(__name__)

SHOWN = ("accuracy", "accuracy_gain", "predecessor_accuracy", "calibration_error")
"""Measures that are metrics, each in [-1, 1]."""

MEASURED = (
    "train_loss",
    "pairs",
    "calibration_error",
    "tested",
    "disagreement_right",
    "disagreement_wrong",
)
"""Figures of a judge that its record has as they are."""


class RewardModels:
    """Publishes judges as reward models."""

    def __init__(
        self,
        *,
        event_log: EventLog,
        registry: RegistryFollower,
        datasets_root: str,
        settings: TrainingSettings,
        clock: Clock,
        alive: Callable[[], None],
    ) -> None:
        """`alive` is called while the base's files are hashed."""
        self._alive = alive
        self._log = event_log
        self._registry = registry
        self._datasets_root = datasets_root
        self._settings = settings
        self._clock = clock

    async def publish(
        self, resolved: ResolvedJob, dataset: Dataset, workspace: Workspace
    ) -> RewardRecord | None:
        """Store and register a job's judge; None without one, or where `refusal` has a reason.

        Of two replicas that choose the same name the first record counts, as with versions.

        Raises:
            StoreUnavailable: the storage refused the files.
            LogUnavailable: the record was not acknowledged.

        """
        job, judge = resolved.job, workspace.judge
        if not (judge / "reward.json").exists():
            return None
        known = self._registry.registry.rewards(job.model)
        made = next((one for one in known if one.job_id == job.job_id), None)
        if made is not None:
            return made
        found = judge_figures(judge)
        figures = measures(found)
        if why := refusal(found, resolved, self._settings.gate):
            log.info("reward.not_published", job_id=job.job_id, why=why, figures=figures)
            return None
        name = next_name(job.model, self._registry.registry)
        files = adapter_files(judge / "adapter")
        stored = await asyncio.to_thread(
            store, files, workspace.fresh("publish-reward"), self._settings.adapters_uri, name
        )
        base = await base_identity(resolved.base, self._settings, self._alive)
        record = RewardRecord(
            name=name,
            model=job.model,
            base=resolved.base,
            base_revision=base.revision,
            base_sha256=base.sha256,
            predecessor=resolved.predecessor.name if resolved.predecessor else "",
            adapter_uri=stored.uri,
            adapter_sha256=stored.sha256,
            dataset=dataset.reference(self._datasets_root),
            hyperparameters=resolved.reward.model_dump(mode="json"),
            seed=job.seed,
            code_revision=await asyncio.to_thread(
                code_revision, self._settings.code_revision, ROOT
            ),
            packages=_packages(workspace),
            metrics=figures,
            accuracy_by_category=_by_category(judge),
            score_deciles=_score_deciles(judge),
            job_id=job.job_id,
            created_at=self._clock.now(),
        )
        await self._log.publish(
            VERSIONS, key=reward_key(name), event=record, event_id=f"{name}:{job.job_id}"
        )
        log.info("reward.published", name=name, job_id=job.job_id, figures=figures)
        return record


def refusal(figures: Mapping[str, float], resolved: ResolvedJob, limits: GateLimits) -> str:
    """Why a judge is not published as a reward model; empty where it is.

    Args:
        figures: What `judge_figures` returns.
        resolved: Its job.
        limits: Conditions of release.

    """
    if measures(figures).get("accuracy_low", 0.0) <= limits.judge_accuracy_low:
        return "it does not agree with raters it never saw; collect more votes"
    if predecessor_judges(figures) and resolved.predecessor:
        own = figures.get("judge_compared_agreed", 0.0)
        return (
            f"it agrees with {own:.0f} of {figures['judge_compared']:.0f} votes that neither learned "
            f"from, {resolved.predecessor.name} with {figures['judge_predecessor_agreed']:.0f}; that "
            "one stays; collect more votes"
        )
    return ""


def show(registry: Registry, metrics: TrainingMetrics) -> None:
    """Set the metrics of each model's newest reward model."""
    for model in {one.record.model for one in registry.versions()}:
        for record in registry.rewards(model)[-1:]:
            for figure in SHOWN:
                if figure in record.metrics:
                    metrics.reward.labels(model, figure).set(record.metrics[figure])


def measures(figures: Mapping[str, float]) -> dict[str, float]:
    """A reward model's measures from its judge's figures.

    `train_loss`, `pairs`, the `disagreement_…` of several heads, held-out `accuracy` with its 95 %
    bounds, `calibration_error`, and on the pairs of those that its predecessor did not learn from
    either, votes that came since included, the `predecessor_accuracy` and the `accuracy_gain` over
    it.
    """
    kept = {
        name.removeprefix("judge_"): value
        for name, value in figures.items()
        if name.removeprefix("judge_") in MEASURED
    }
    agreed, tested = figures.get("judge_agreed"), figures.get("judge_tested", 0.0)
    if agreed is None or not tested:
        return kept
    low, high = wilson(agreed, tested)
    kept |= {"accuracy": agreed / tested, "accuracy_low": low, "accuracy_high": high}
    own, before = figures.get("judge_compared_agreed"), figures.get("judge_predecessor_agreed")
    compared = figures.get("judge_compared", 0.0)
    if own is not None and before is not None and compared:
        kept["predecessor_accuracy"] = before / compared
        kept["accuracy_gain"] = (own - before) / compared
    return kept


def next_name(model: str, registry: Registry) -> str:
    """`<model>-reward-v<n>`, one more than the highest."""
    pattern = re.compile(rf"{re.escape(model)}-reward-v(\d{{1,9}})")
    found = (pattern.fullmatch(one.name) for one in registry.rewards(model))
    return f"{model}-reward-v{1 + max((int(one[1]) for one in found if one), default=0)}"


def _by_category(judge: Path) -> dict[str, float]:
    """Held-out accuracy by category; empty for a judge of before categories were counted."""
    path = judge / "categories.json"
    counts: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return {name: one["agreed"] / one["tested"] for name, one in sorted(counts.items())}


def _score_deciles(judge: Path) -> tuple[float, ...]:
    """Empty for a judge of before they were kept."""
    path = judge / "deciles.json"
    return tuple(json.loads(path.read_bytes())) if path.exists() else ()


def _packages(workspace: Workspace) -> dict[str, str]:
    return json.loads((workspace.attempt(1) / "packages.json").read_bytes())
