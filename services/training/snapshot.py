"""Immutable snapshots: a dataset read up to recorded offsets, and its manifest.

Nothing in the manifest depends on the time or the machine, so a rebuild from the same offsets is
the same bytes.
"""

# pyright: strict
from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import orjson
import structlog
from pydantic import BaseModel, ConfigDict, field_validator

from services.training.dataset import (
    HELDOUT,
    JUDGE,
    PROMPTS,
    TRAIN,
    DatasetRules,
    PreferenceFold,
    Selection,
    canonical,
    demonstrations_of,
    select_demonstrations,
    select_pairs,
)
from services.training.errors import BadDataset
from services.training.importing import read_demonstrations, read_pairs
from shared.contracts.events.base import ModelName
from shared.contracts.events.preferences import PreferencePair, PreferenceRetracted, UnpairedExample
from shared.contracts.events.training import TrainingMethod
from shared.contracts.events.versions import DatasetRef
from shared.contracts.topics import PREFERENCES
from shared.kafka.envelope import UnreadableRecord, decode, models_by_type
from shared.kafka.log import EventLog, LogUnavailable, Record

log = structlog.get_logger(__name__)

MODELS = models_by_type(PreferencePair, UnpairedExample, PreferenceRetracted)
FILES = (TRAIN, HELDOUT, JUDGE, PROMPTS)
STALL_S = 30.0
"""Longest wait for the next record before the end of the log."""

Offsets = Mapping[str, int]
"""`<topic>/<partition>` -> first offset not read."""


class FileRef(BaseModel):
    """One file of a dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sha256: str
    rows: int
    bytes: int


class Manifest(BaseModel):
    """What a dataset is: its origin, checks, counts, card and the hashes of its files."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    model: ModelName
    method: TrainingMethod
    origin: Literal["log", "import"]
    source: str = ""
    source_sha256: str = ""
    offsets: dict[str, int]
    rules: DatasetRules
    refused: dict[str, int]
    retracted: int
    card: dict[str, dict[str, int]]
    files: dict[str, FileRef]

    @field_validator("files")
    @classmethod
    def _known_files(cls, value: dict[str, FileRef]) -> dict[str, FileRef]:
        """A manifest is read back from storage, and the names in it become paths."""
        unknown = sorted(set(value) - set(FILES))
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no file of a dataset; known are {FILES}")
        return value

    def encode(self) -> bytes:
        """The manifest as it is stored: equal manifests are equal bytes."""
        value = self.model_dump(mode="json")
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2) + b"\n"

    @property
    def sha256(self) -> str:
        """The dataset's hash: over the manifest, and so over every file, offset and rule."""
        return hashlib.sha256(self.encode()).hexdigest()

    @property
    def dataset_id(self) -> str:
        """The dataset's name; it follows from the hash."""
        return f"{self.model}-{self.method.value}-{self.sha256[:16]}"


@dataclass(frozen=True)
class Dataset:
    """A manifest with the bytes it speaks of."""

    manifest: Manifest
    files: Mapping[str, bytes]

    def reference(self, root: str) -> DatasetRef:
        """What a version's record says of its data."""
        manifest = self.manifest
        return DatasetRef(
            dataset_id=manifest.dataset_id,
            uri=f"{root.rstrip('/')}/{manifest.dataset_id}",
            sha256=manifest.sha256,
            rows=manifest.files[TRAIN].rows,
            offsets=manifest.offsets,
        )


@dataclass(frozen=True)
class ImportedRows:
    """A dataset somebody handed in."""

    uri: str
    data: bytes


async def take_snapshot(
    event_log: EventLog,
    *,
    model: str,
    method: TrainingMethod,
    rules: DatasetRules,
    imported: ImportedRows | None = None,
    until: Offsets | None = None,
    alive: Callable[[], None] = lambda: None,
) -> Dataset:
    """A dataset from the log, or from an import with the judge's data and prompts of the log.

    Args:
        event_log: Where `preferences.v1` is.
        model: Pairs of other models are left out.
        method: SFT takes demonstrations, DPO and reward take pairs.
        rules: Checks and shares.
        imported: Rows to train on in place of the log's.
        until: Offsets to stop at, to rebuild an earlier snapshot; None reads all there is.
        alive: Called for every record, as the log may be long.

    Raises:
        BadDataset: the import has bad rows, or nothing is left to train on.
        LogUnavailable: the log stopped before its end.

    """
    fold, offsets = PreferenceFold(model), dict[str, int]()
    if imported is None or method is not TrainingMethod.sft:
        await _read(event_log, fold, offsets, until, alive)
    selection = await asyncio.to_thread(_select, fold, method, rules, imported)
    files = {name: canonical(selection.files[name]) for name in FILES}
    trained_on = JUDGE if method is TrainingMethod.reward else TRAIN
    if not selection.files[trained_on]:
        why = ", ".join(f"{count} {name}" for name, count in selection.refused.items())
        raise BadDataset(
            f"dataset: no rows to train {model} on by {method.value}"
            f"{f' (refused: {why})' if why else ''}; collect feedback or give dataset_uri"
        )
    manifest = Manifest(
        model=model,
        method=method,
        origin="import" if imported else "log",
        source=imported.uri if imported else "",
        source_sha256=hashlib.sha256(imported.data).hexdigest() if imported else "",
        offsets=offsets,
        rules=rules,
        refused=dict(selection.refused),
        retracted=fold.retracted,
        card={name: dict(counts) for name, counts in selection.card.items()},
        files={
            name: FileRef(
                sha256=hashlib.sha256(data).hexdigest(),
                rows=len(selection.files[name]),
                bytes=len(data),
            )
            for name, data in files.items()
        },
    )
    return Dataset(manifest, files)


def place(record: Record) -> str:
    """The name of a record's partition in `Offsets`."""
    return f"{record.topic}/{record.partition}"


async def _read(
    event_log: EventLog,
    fold: PreferenceFold,
    offsets: dict[str, int],
    until: Offsets | None,
    alive: Callable[[], None],
) -> None:
    tail = event_log.tail(PREFERENCES)
    count = 0

    async def collect() -> None:
        nonlocal count
        async for record in tail:
            count += 1
            alive()
            if until is not None and record.offset >= until.get(place(record), 0):
                continue
            offsets[place(record)] = record.offset + 1
            try:
                fold.apply(decode(record.headers, record.value, MODELS))
            except UnreadableRecord as error:
                log.warning("snapshot.unreadable", offset=record.offset, error=str(error))

    collecting = asyncio.create_task(collect())
    try:
        before = -1
        while True:
            try:
                await tail.caught_up(STALL_S)
                break
            except LogUnavailable:
                if count == before:
                    raise
                before = count
    finally:
        collecting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await collecting
        await tail.close()


def _select(
    fold: PreferenceFold, method: TrainingMethod, rules: DatasetRules, imported: ImportedRows | None
) -> Selection:
    trainable = [pair for pair in fold.pairs if not pair.panel]
    judged = [pair for pair in fold.pairs if pair.panel]
    if method is TrainingMethod.sft:
        rows = read_demonstrations(imported.data) if imported else demonstrations_of(trainable)
        return select_demonstrations(rows, rules)
    pairs = read_pairs(imported.data) if imported else trainable
    return select_pairs(pairs, judged, fold.prompts, rules)
