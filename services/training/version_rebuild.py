"""Rebuild of a version from its record: dataset by offsets, recipe and seed; compared, not published."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping

from services.training.attempts import Attempts
from services.training.candidate import training_stages
from services.training.dataset_manifest import Dataset
from services.training.dataset_store import DatasetStore, lay_out
from services.training.errors import InvalidJob
from services.training.outcome import JobOutcome
from services.training.process import ROOT
from services.training.progress import ProgressReporter
from services.training.publish import adapter_files
from services.training.rebuild import differences, rebuild
from services.training.recorded_jobs import resolve_rebuild
from services.training.settings import TrainingSettings
from services.training.workspace import Workspace
from shared.contracts.events.training import RunPhase, TrainingRequested
from shared.contracts.events.versions import VersionRecord
from shared.kafka.log import EventLog
from shared.registry.versions import Registry
from shared.revision import code_revision


class VersionRebuilder:
    """Makes a version again and says whether its adapter has the same bytes."""

    def __init__(
        self,
        *,
        event_log: EventLog,
        store: DatasetStore,
        settings: TrainingSettings,
        attempts: Attempts,
        alive: Callable[[], None],
    ) -> None:
        """`alive` is called while the dataset is made again."""
        self._alive = alive
        self._log = event_log
        self._store = store
        self._settings = settings
        self._attempts = attempts

    async def run(
        self,
        job: TrainingRequested,
        registry: Registry,
        workspace: Workspace,
        reporter: ProgressReporter,
    ) -> JobOutcome:
        """Rebuild the version that a job names; `rejected` where the bytes differ.

        Raises:
            InvalidJob: there is no such version, or its dataset is gone.
            BadDataset: the dataset cannot be made again.
            TrainerFailed: the trainer ended without a result.
            AdapterError: the published adapter, or the parent's, cannot be fetched.

        """
        resolved, record = resolve_rebuild(job, registry, self._settings)
        stored = await asyncio.to_thread(self._store.read, record.dataset.dataset_id)
        if stored is None:
            raise InvalidJob(
                f"rebuilds: {record.dataset.dataset_id} is gone from {self._store.root}; the rules "
                "by which it was taken went with it, so it cannot be made again"
            )
        await reporter.enter(RunPhase.snapshot, 0.0)
        made = await rebuild(self._log, stored, self._settings.readable_import_roots, self._alive)
        await asyncio.to_thread(lay_out, made, workspace.data)
        folder = workspace.attempt(1)
        await self._attempts.train(
            resolved,
            resolved.hyperparameters,
            workspace,
            folder,
            reporter,
            stages=training_stages(resolved.job.recipe_method),
        )
        published = adapter_files(await self._attempts.adapters.of(record))
        again = adapter_files(folder / "adapter")
        found = [name for name, data in published.items() if again[name] != data]
        if not found:
            return JobOutcome(
                RunPhase.succeeded,
                f"{record.version}: equal; {' and '.join(published)} have the same bytes",
            )
        revision = await asyncio.to_thread(code_revision, self._settings.code_revision, ROOT)
        packages = json.loads((folder / "packages.json").read_bytes())
        why = reasons(record, stored, made, revision, packages)
        return JobOutcome(
            RunPhase.rejected, f"{record.version}: differs in {' and '.join(found)}; {why}"
        )


def reasons(
    record: VersionRecord,
    stored: Dataset,
    made: Dataset,
    revision: str,
    packages: Mapping[str, str],
) -> str:
    """What is not as it was when the version was made."""
    found = [f"{name} of the dataset differs" for name in differences(stored, made)]
    if record.code_revision != revision:
        found.append(f"the code was {record.code_revision} and is {revision}")
    found += [
        f"{name} was {version} and is {packages.get(name, 'missing')}"
        for name, version in sorted(record.packages.items())
        if packages.get(name) != version
    ]
    return "; ".join(found) or (
        "data, recipe, seed, code and packages are the same: the hardware, its number of threads "
        "or a run that was interrupted is what is left"
    )
