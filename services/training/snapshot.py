"""Snapshot: a dataset from the log up to recorded offsets, or from an import."""

# pyright: strict
from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

import orjson
import structlog

from services.training.dataset import (
    Selection,
    demonstrations_of,
    select_demonstrations,
    select_pairs,
    unexpired,
    unsuspicious,
)
from services.training.dataset_files import DataFiles, FileLines
from services.training.dataset_manifest import (
    FILES,
    Dataset,
    Manifest,
    left_out_lines,
    require_rows,
)
from services.training.dataset_rows import LEFT_OUT, LeftOut, Row, canonical_lines
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
from services.training.sides import DatasetRules, set_apart
from services.training.spill import ScratchFile, made
from shared.contracts.events.preferences import (
    PreferencePair,
    PreferenceRetracted,
    UnpairedExample,
)
from shared.contracts.events.training import TrainingMethod
from shared.contracts.topics import PREFERENCES
from shared.kafka.envelope import UnreadableRecord, decode, header, models_by_type
from shared.kafka.log import EventLog, LogUnavailable, Record
from shared.observability.spans import MAX_LINKS
from shared.observability.tracing import is_sampled

log = structlog.get_logger(__name__)

MODELS = models_by_type(PreferencePair, UnpairedExample, PreferenceRetracted)
STALL_S = 30.0
"""Longest wait for the next record before the end of the log."""
BEAT_S = 10.0
T = TypeVar("T")

Offsets = Mapping[str, int]
"""`<topic>/<partition>` -> first offset not read."""


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
        alive: Called for every record and while rows are selected: a million take a quarter of an hour.

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
    require_rows(dataset)
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
        for line in left_out_lines((row,)):
            self._files.append(line)

    @property
    def rows(self) -> Collection[Row]:
        """The rows as lines of a dataset."""
        return made(FileLines(self._files), lambda line: (orjson.loads(line),))
