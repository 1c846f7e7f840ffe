"""Immutable snapshots: a dataset read up to recorded offsets, and its manifest.

Nothing in the manifest depends on the time or the machine, so a rebuild from the same offsets is
the same bytes.
"""

# pyright: strict
from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Literal, NamedTuple, TypeVar, cast

import orjson
import structlog
from pydantic import BaseModel, ConfigDict, Field, field_validator

from services.training.dataset import (
    TENANT,
    Selection,
    card_of,
    demonstrations_of,
    select_demonstrations,
    select_pairs,
    unexpired,
    unsuspicious,
)
from services.training.dataset_files import DataFiles, FileLines, FileRef
from services.training.dataset_rows import (
    HELDOUT,
    JUDGE,
    LEFT_OUT,
    PROMPTS,
    TRAIN,
    LeftOut,
    Row,
    canonical_lines,
)
from services.training.errors import BadDataset
from services.training.importing import (
    ImportedRows,
    demonstrations_in,
    labelled_in,
    pairs_in,
)
from services.training.labelled import answer_finding, select_labelled
from services.training.preference_fold import PreferenceFold
from services.training.row_checks import demonstration_finding, pair_finding, prompt_finding
from services.training.row_store import SelectedRows
from services.training.sides import OF_THEIR_TIME, DatasetRules, set_apart
from services.training.spill import ScratchFile, made
from shared.contracts.events.base import ModelName
from shared.contracts.events.preferences import (
    ERASED,
    PreferencePair,
    PreferenceRetracted,
    UnpairedExample,
)
from shared.contracts.events.training import TrainingMethod
from shared.contracts.events.versions import DatasetRef
from shared.contracts.topics import PREFERENCES
from shared.kafka.envelope import UnreadableRecord, decode, header, models_by_type
from shared.kafka.log import EventLog, LogUnavailable, Record
from shared.observability.spans import MAX_LINKS
from shared.observability.tracing import is_sampled

log = structlog.get_logger(__name__)

MODELS = models_by_type(PreferencePair, UnpairedExample, PreferenceRetracted)
FILES = (TRAIN, HELDOUT, JUDGE, PROMPTS, LEFT_OUT)
STALL_S = 30.0
"""Longest wait for the next record before the end of the log."""
BEAT_S = 10.0
T = TypeVar("T")

Offsets = Mapping[str, int]
"""`<topic>/<partition>` -> first offset not read."""


class FilePlace(NamedTuple):
    """A line of a dataset's file, counted from 1."""

    file: str
    line: int


def _is_empty(value: object) -> bool:
    return not value


class Manifest(BaseModel):
    """What a dataset is: its origin, checks, counts, card and the hashes of its files."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    model: ModelName
    method: TrainingMethod
    labelled: bool = Field(default=False, description="rows are single answers, good or bad")
    origin: Literal["log", "import"]
    source: str = ""
    source_sha256: str = ""
    offsets: dict[str, int]
    rules: DatasetRules
    refused: dict[str, int]
    retracted: int
    card: dict[str, dict[str, int]]
    files: dict[str, FileRef]
    erased_from: str = Field(
        default="",
        exclude_if=_is_empty,
        description="the dataset's id before an erasure took rows out; it stays its name",
    )
    stored_as: str = Field(
        default="",
        exclude=True,
        description="its name in storage where that does not follow: a rule of today is no part of "
        "the hash of an older manifest",
    )

    @field_validator("rules", mode="before")
    @classmethod
    def _rules_of_their_time(cls, value: object) -> object:
        """A rule that a manifest does not name was not there when it was written."""
        if not isinstance(value, dict):
            return value
        return {**OF_THEIR_TIME, **cast("dict[str, object]", value)}

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
        """The dataset's name; it follows from the hash at first writing, before any erasure."""
        name = self.stored_as or self.erased_from
        return name or f"{self.model}-{self.method.value}-{self.sha256[:16]}"

    def under(self, name: str) -> Manifest:
        """The manifest as that of a dataset of this name, whichever release wrote it."""
        named = self.model_copy(update={"stored_as": ""})
        return named if named.dataset_id == name else named.model_copy(update={"stored_as": name})


@dataclass(frozen=True)
class Dataset:
    """A manifest with the bytes it speaks of."""

    manifest: Manifest
    files: DataFiles
    traceparents: Sequence[str] = field(default=(), compare=False)
    """Spans of some sampled pairs that were read for it; none where it was read from storage."""

    def reference(self, root: str) -> DatasetRef:
        """What a version's record says of its data."""
        manifest = self.manifest
        return DatasetRef(
            dataset_id=manifest.dataset_id,
            uri=f"{root.rstrip('/')}/{manifest.dataset_id}",
            sha256=manifest.sha256,
            rows=manifest.files[TRAIN].rows,
            refused=manifest.refused,
            offsets=manifest.offsets,
            tenants=manifest.card.get(TENANT, {}),
        )

    def rows(self, name: str) -> Collection[Row]:
        """Rows of a file, read whenever they are asked for."""
        return made(self.files.lines(name), lambda line: (orjson.loads(line),))

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Rows that are not in the dataset for what is in them; older datasets have no such file."""
        return tuple(self.left_out_rows())

    def left_out_rows(self) -> Iterator[LeftOut]:
        """Those of `left_out`, one at a time."""
        return map(LeftOut.model_validate_json, self.files.lines(LEFT_OUT))

    def without(self, rows: Iterable[LeftOut]) -> Dataset:
        """The dataset without some of its rows, which are counted and kept by line and reason.

        Raises:
            BadDataset: nothing is left to train on.

        """
        left = list(rows)
        if not left:
            return self
        dataset = self._without({FilePlace(row.file, row.line) for row in left}, left)
        _require_rows(dataset)
        return dataset

    def erase(self, places: AbstractSet[FilePlace]) -> Dataset:
        """The dataset after an erasure: under its own name, and maybe with nothing left.

        The lines are those of the files as they are; those that are kept on record count from
        before the first erasure, so that a rebuild leaves out the same rows.
        """
        before = {
            name: sorted(
                row.line for row in self.left_out if (row.file, row.reason) == (name, ERASED)
            )
            for name in FILES
        }
        left = [
            LeftOut(file=name, line=_counted_with(before[name], line), reason="erased", detail="")
            for name, line in places
        ]
        dataset = self._without(places, left)
        # In one order whether several erasures took the rows or one, as a rebuild does.
        rows = sorted(dataset.left_out, key=_by_erasure)
        files = DataFiles({**dataset.files.all_lines(), LEFT_OUT: _lines(rows)})
        update = {"erased_from": self.manifest.dataset_id, "files": files.refs}
        return Dataset(dataset.manifest.model_copy(update=update), files)

    def _without(self, gone: AbstractSet[FilePlace], left: Iterable[LeftOut]) -> Dataset:
        left = sorted(left, key=lambda row: (FILES.index(row.file), row.line))
        contents: dict[str, Iterable[bytes]] = {
            name: _lines_without(name, lines, gone)
            for name, lines in self.files.all_lines().items()
        }
        contents[LEFT_OUT] = chain(contents[LEFT_OUT], _lines(left))
        files = DataFiles(contents)
        refused = Counter(self.manifest.refused) + Counter(row.counted_as for row in left)
        train = map(orjson.loads, files.lines(TRAIN))
        raters = self.manifest.card["counts"]["raters"]
        manifest = self.manifest.model_copy(
            update={
                "refused": dict(sorted(refused.items())),
                "card": card_of(train, raters=raters, rules=self.manifest.rules),
                "files": files.refs,
            }
        )
        return replace(self, manifest=manifest, files=files)


async def take_snapshot(
    event_log: EventLog,
    *,
    model: str,
    method: TrainingMethod,
    rules: DatasetRules,
    labelled: bool = False,
    imported: ImportedRows | None = None,
    until: Offsets | None = None,
    alive: Callable[[], None] = lambda: None,
) -> Dataset:
    """A dataset from the log, or from an import.

    An import is judged on rows of its own, set apart and held out like the log's: the log's
    votes may be of another product.

    Args:
        event_log: Where `preferences.v1` is.
        model: Pairs of other models are left out.
        method: SFT takes demonstrations, DPO and reward take pairs.
        rules: Checks and shares.
        labelled: Take single answers, good or bad, as KTO does.
        imported: Rows to train on in place of the log's; its file is closed.
        until: Offsets to stop at, to rebuild an earlier snapshot; None reads all there is.
        alive: Called for every record and while rows are selected: half a million take minutes.

    Raises:
        BadDataset: the import has bad rows, or nothing is left to train on.
        LogUnavailable: the log stopped before its end.

    """
    fold, offsets = PreferenceFold(model), dict[str, int]()
    traceparents: list[str] = []
    if imported is None:
        traceparents = await _read(event_log, fold, offsets, until, alive)
    with contextlib.nullcontext() if imported is None else contextlib.closing(imported):
        select = partial(_select, fold, method, rules, imported, labelled=labelled)
        selection, files = await _in_thread(lambda: _encoded(select), alive)
        source_sha256 = await _in_thread(lambda: imported.sha256 if imported else "", alive)
    manifest = Manifest(
        model=model,
        method=method,
        labelled=labelled,
        origin="import" if imported else "log",
        source=imported.uri if imported else "",
        source_sha256=source_sha256,
        offsets=offsets,
        rules=rules,
        refused=dict(selection.refused),
        retracted=fold.retracted,
        card={name: dict(counts) for name, counts in selection.card.items()},
        files=files.refs,
    )
    dataset = Dataset(manifest, files, traceparents)
    _require_rows(dataset)
    return dataset


async def _in_thread(work: Callable[[], T], alive: Callable[[], None]) -> T:
    """What bounded work returns; `alive` is called until it does."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        while not running.done():
            alive()
            await asyncio.wait({running}, timeout=BEAT_S)
    finally:
        running.cancel()
    return running.result()


def _encoded(select: Callable[[SelectedRows], Selection]) -> tuple[Selection, DataFiles]:
    """What is selected, with its files written; the store of rows is done with then."""
    selection = select(SelectedRows())
    files = DataFiles({name: canonical_lines(selection.files[name]) for name in FILES})
    return replace(selection, files={}), files


def place(record: Record) -> str:
    """The name of a record's partition in `Offsets`."""
    return f"{record.topic}/{record.partition}"


def _by_erasure(row: LeftOut) -> tuple[int, int]:
    """Sorts erased rows behind the others, by file and line; the others stay in their order."""
    return (1 + FILES.index(row.file), row.line) if row.reason == ERASED else (0, 0)


def _counted_with(gone: Sequence[int], line: int) -> int:
    """The number that a line had before those of these numbers went, which are in order."""
    for before in gone:
        line += before <= line
    return line


def _lines_without(
    name: str, lines: Iterable[bytes], gone: AbstractSet[FilePlace]
) -> Iterator[bytes]:
    for number, line in enumerate(lines, start=1):
        if FilePlace(name, number) not in gone:
            yield line


def _lines(rows: Iterable[LeftOut]) -> Iterator[bytes]:
    return canonical_lines(row.model_dump() for row in rows)


def _require_rows(dataset: Dataset) -> None:
    manifest = dataset.manifest
    trained_on = JUDGE if manifest.method is TrainingMethod.reward else TRAIN
    if manifest.files[trained_on].rows:
        return
    why = ", ".join(f"{count} {name}" for name, count in manifest.refused.items())
    first = next((f"; for example {row}" for row in dataset.left_out_rows()), "")
    raise BadDataset(
        f"dataset: no rows to train {manifest.model} on by {manifest.method.value}"
        f"{f' (left out: {why}{first})' if why else ''}; {_remedy(manifest.refused)}"
    )


def _remedy(refused: Mapping[str, int]) -> str:
    if refused.get("template"):
        return "the base's chat template must render the rows: change them, or take another base"
    if refused.get("too_long"):
        return "raise max_length and the engine's context, which it follows, or shorten the rows"
    return "collect feedback or give dataset_uri"


async def _read(
    event_log: EventLog,
    fold: PreferenceFold,
    offsets: dict[str, int],
    until: Offsets | None,
    alive: Callable[[], None],
) -> list[str]:
    """Read the topic to its end; returns the spans of the last sampled records, a bounded number."""
    tail = event_log.tail(PREFERENCES)
    count = 0
    traceparents = deque[str](maxlen=MAX_LINKS)

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
                if is_sampled(cause := header(record.headers, "traceparent")):
                    traceparents.append(cause)
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
    return list(traceparents)


def _select(
    fold: PreferenceFold,
    method: TrainingMethod,
    rules: DatasetRules,
    imported: ImportedRows | None,
    store: SelectedRows,
    *,
    labelled: bool,
) -> Selection:
    bad = _BadRows()
    kept = None if imported is None or imported.strict else bad
    lines = imported.lines() if imported else ()
    if method is TrainingMethod.sft:
        shown = demonstrations_in(lines, kept) if imported else demonstrations_of(fold.pairs)
        keys = store.keep(shown, lambda row: demonstration_finding(row, rules))
        selection = select_demonstrations(keys, rules, store.whole)
    elif labelled:
        answers = labelled_in(lines, kept) if imported else fold.answers
        stored = (
            store.keep(() if imported else fold.pairs, lambda pair: pair_finding(pair, rules)),
            store.keep(answers, lambda one: answer_finding(one, rules)),
        )
        (pairs, old_pairs), (singles, old) = (unexpired(rows, rules) for rows in stored)
        refused = Counter(expired=old_pairs + old)
        pairs, singles = unsuspicious((pairs, singles), rules, refused)
        selection = select_labelled(pairs, singles, rules, store.whole).with_refused(**refused)
    else:
        pairs = pairs_in(lines, kept) if imported else fold.pairs
        keys = store.keep(pairs, lambda pair: pair_finding(pair, rules))
        fresh, expired = unexpired(keys, rules)
        refused = Counter(expired=expired)
        (fresh,) = unsuspicious((fresh,), rules, refused)
        trainable, judged = set_apart(fresh, rules)
        prompts = store.keep(fold.answers, prompt_finding)
        selection = select_pairs(trainable, judged, prompts, rules, store.whole)
        selection = selection.with_refused(**refused)
    refused = Counter(selection.refused) + bad.counts
    files = {**selection.files, LEFT_OUT: bad.rows}
    return replace(selection, files=files, refused=dict(sorted(refused.items())))


class _BadRows:
    """Bad rows of an import, on disk."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._files = ScratchFile()

    def append(self, row: LeftOut) -> None:
        """Count and keep one."""
        self.counts[row.counted_as] += 1
        for line in _lines((row,)):
            self._files.append(line)

    @property
    def rows(self) -> Collection[Row]:
        """The rows as lines of a dataset."""
        return made(FileLines(self._files), lambda line: (orjson.loads(line),))
