"""Erasure in training: stored datasets and job folders lose what was erased, versions are marked.

The retractions that erasures wrote on `preferences.v1` say what. A sweep may run again at any time:
a row that is gone is not found, and a mark that stands is not written.
"""

# pyright: strict
from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import structlog

from services.training.dataset_manifest import Dataset, FilePlace
from services.training.dataset_rows import LEFT_OUT, PROMPTS, TRAIN, AskedPrompt, prompt_of
from services.training.dataset_store import DatasetStore
from services.training.errors import BadDataset, StoreUnavailable
from services.training.snapshot import MODELS
from services.training.workspace import drop_of_datasets
from shared.clock import Clock
from shared.contracts.events.preferences import (
    ERASED,
    PreferencePair,
    PreferenceRetracted,
    UnpairedExample,
)
from shared.contracts.events.versions import VersionMarks, VersionRecord, marks_key
from shared.contracts.topics import PREFERENCES, VERSIONS
from shared.kafka.envelope import UnreadableRecord, decode, header
from shared.kafka.log import EventLog, LogUnavailable, Record, read_to_end
from shared.observability.events import Unavailable
from shared.registry.follow import RegistryFollower

log = structlog.get_logger(__name__)

READ_TIMEOUT_S = 600.0
MAX_REFUSED = 3
"""Datasets that storage may refuse in a sweep before it counts as away."""


class DatasetEraser:
    """Follows erasures and takes their rows out of what training has stored."""

    def __init__(
        self,
        event_log: EventLog,
        registry: RegistryFollower,
        store: DatasetStore,
        jobs: Path,
        clock: Clock,
    ) -> None:
        self._log = event_log
        self._registry = registry
        self._store = store
        self._jobs = jobs
        self._clock = clock
        self._tail = event_log.tail(PREFERENCES)
        self._erased: set[str] = set()
        """Ids of erased pairs and examples."""
        self._checked: dict[str, int] = {}
        """Dataset id -> how many ids were erased when it was last looked through."""
        self._marked: dict[str, int] = {}
        """Dataset id -> erased rows of what was trained on."""

    async def follow(self) -> None:
        """Collect what is erased, until cancelled."""
        try:
            async for record in self._tail:
                if header(record.headers, "ce_type") != PreferenceRetracted.ce_type:
                    continue
                with contextlib.suppress(UnreadableRecord):
                    event = decode(record.headers, record.value, MODELS)
                    if isinstance(event, PreferenceRetracted) and event.reason == ERASED:
                        self._erased.add(event.pair_id)
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await self._tail.close()

    @property
    def erased(self) -> int:
        """How many pairs and examples are known to be erased."""
        return len(self._erased)

    async def caught_up(self, timeout_s: float) -> None:
        """Wait until all erasures of before the start are known.

        Raises:
            LogUnavailable: it took longer.

        """
        await self._tail.caught_up(timeout_s)

    async def sweep(self, alive: Callable[[], None]) -> None:
        """Erase in each dataset that was not looked through since the last erasure.

        What Kafka or storage refuses is tried again at the next call. `alive` is called for each
        dataset and each record read: after a start all of them are.
        """
        if not self._erased:
            return
        erased = frozenset(self._erased)
        try:
            names = await asyncio.to_thread(self._store.names)
            stale = [name for name in names if self._checked.get(name, 0) < len(erased)]
            if stale:
                prompts = await self._prompts(erased, alive)
                await self._erase_in(stale, erased, prompts, alive)
            await self._mark()
        except (StoreUnavailable, LogUnavailable) as error:
            log.warning(Unavailable.storage, during="erasure", error=str(error))

    async def _erase_in(
        self,
        names: Sequence[str],
        erased: AbstractSet[str],
        prompts: Collection[str],
        alive: Callable[[], None],
    ) -> None:
        """Erase in each dataset; one that storage refuses holds no other one up.

        Raises:
            StoreUnavailable: storage refused MAX_REFUSED datasets.

        """
        refused = 0
        for name in names:
            alive()
            try:
                await asyncio.to_thread(self._erase, name, erased, prompts)
            except StoreUnavailable as error:
                refused += 1
                if refused >= MAX_REFUSED:
                    raise
                log.warning(
                    Unavailable.storage, during="erasure", dataset_id=name, error=str(error)
                )
            else:
                self._checked[name] = len(erased)

    async def _prompts(self, erased: AbstractSet[str], alive: Callable[[], None]) -> frozenset[str]:
        """Normal forms of the prompts of what was erased."""

        def keep(record: Record) -> bool:
            alive()
            return record.key in erased

        records = await read_to_end(self._log, PREFERENCES, timeout_s=READ_TIMEOUT_S, keep=keep)
        prompts: set[str] = set()
        for record in records:
            with contextlib.suppress(UnreadableRecord):
                event = decode(record.headers, record.value, MODELS)
                if isinstance(event, PreferencePair | UnpairedExample):
                    prompts.add(AskedPrompt(event.messages, event.tools).normal)
        return frozenset(prompts)

    def _erase(self, name: str, erased: Collection[str], prompts: Collection[str]) -> None:
        try:
            dataset = self._store.read(name)
        except BadDataset as error:
            log.warning("dataset.unreadable", dataset_id=name, error=str(error))
            return
        if dataset is None:
            return
        gone = frozenset(rows_of(dataset, erased, prompts))
        if gone:
            dataset = dataset.erase(gone)
            self._store.replace(dataset)
            log.info("dataset.erased", dataset_id=name, rows=len(gone))
        elif dataset.manifest.erased_from:
            self._store.drop_replaced(name)  # a sweep that was killed may have left them
        if dataset.manifest.erased_from:
            drop_of_datasets(self._jobs, {name})
            self._marked[name] = sum(
                row.file == TRAIN and row.reason == ERASED for row in dataset.left_out_rows()
            )

    async def _mark(self) -> None:
        """Mark each version whose training data lost rows."""
        for version in self._registry.registry.versions():
            record = version.record
            if not isinstance(record, VersionRecord):
                continue
            rows = self._marked.get(record.dataset.dataset_id)
            known = version.marks.erased_rows if version.marks else 0
            if rows is None or rows == known:
                continue
            marks = VersionMarks(version=record.version, erased_rows=rows, at=self._clock.now())
            await self._log.publish(
                VERSIONS,
                key=marks_key(record.version),
                event=marks,
                event_id=f"{record.version}:{ERASED}:{rows}",
            )


def rows_of(
    dataset: Dataset, erased: Collection[str], prompts: Collection[str]
) -> Iterable[FilePlace]:
    """Where a dataset has rows of these pairs and examples, or asks these prompts."""
    for name in dataset.files:
        if name == LEFT_OUT:
            continue
        for line, row in enumerate(dataset.rows(name), start=1):
            if name == PROMPTS:
                gone = prompt_of(row).normal in prompts
            else:
                gone = not _made_of(row["meta"]).isdisjoint(erased)
            if gone:
                yield FilePlace(name, line)


def _made_of(meta: Mapping[str, str]) -> frozenset[str]:
    """Ids of the pairs and examples of a row: KTO's has `<pair>/<side>`, a judge's of thumbs both."""
    name = meta.get("pair_id") or meta.get("row_id", "")
    return frozenset((name, *name.split("/")))
