"""Lineage of a stored dataset: feedback and interactions behind each row, versions trained on it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from services.cli.kafka import READ_TIMEOUT_S, read_registry

if TYPE_CHECKING:
    from shared.kafka.log import EventLog, Record


class RowLineage(NamedTuple):
    """What one row was made of. Both are empty for a row of an import."""

    file: str
    row: str
    """Its `pair_id` or `row_id`."""
    feedback: Sequence[str]
    """`feedback_id:revision` of each."""
    traces: Sequence[str]
    """Interactions that were answered, by trace id."""


class DatasetLineage(NamedTuple):
    """A dataset's way from people to versions."""

    rows: Sequence[RowLineage]
    versions: Sequence[str]
    """Versions trained on it, in the order of their records."""
    rewards: Sequence[str]
    """Reward models trained on it."""


async def read_lineage(
    log: EventLog,
    dataset_id: str,
    *,
    model: str,
    offsets: Mapping[str, int],
    rows: Mapping[str, Sequence[str]],
) -> DatasetLineage:
    """The lineage by the log.

    Args:
        log: Where `preferences.v1` and `versions.v1` are.
        dataset_id: The dataset's name.
        model: Whose dataset it is.
        offsets: The manifest's, `<topic>/<partition>` to the first that was not read.
        rows: Row ids of each file.

    Raises:
        LogUnavailable: the topics' end was not reached in time.

    """
    from shared.contracts.events.versions import VersionRecord

    made_of = await _made_of(log, offsets, {_product(row) for ids in rows.values() for row in ids})
    registry = await read_registry(log)
    nothing = _Origin((), ())
    return DatasetLineage(
        rows=[
            RowLineage(file, row, *made_of.get(_product(row), nothing))
            for file, ids in rows.items()
            for row in ids
        ],
        versions=[
            record.version
            for record in (version.record for version in registry.versions(model))
            if isinstance(record, VersionRecord) and record.dataset.dataset_id == dataset_id
        ],
        rewards=[
            reward.name
            for reward in registry.rewards(model)
            if reward.dataset.dataset_id == dataset_id
        ],
    )


class _Origin(NamedTuple):
    feedback: tuple[str, ...]
    traces: tuple[str, ...]


def _product(row: str) -> str:
    """The pair or example of a row: one of KTO is `<pair>/<side>`."""
    return row.partition("/")[0]


async def _made_of(
    log: EventLog, offsets: Mapping[str, int], wanted: set[str]
) -> dict[str, _Origin]:
    """What the log said of these pairs and examples when the dataset was taken."""
    from shared.contracts.events.preferences import PreferencePair, UnpairedExample
    from shared.contracts.topics import PREFERENCES
    from shared.kafka.envelope import UnreadableRecord, decode, models_by_type
    from shared.kafka.log import read_to_end

    models, found = models_by_type(PreferencePair, UnpairedExample), dict[str, _Origin]()

    def note(record: Record) -> bool:
        seen = record.offset < offsets.get(f"{record.topic}/{record.partition}", 0)
        if seen and record.key in wanted:
            with contextlib.suppress(UnreadableRecord):
                event = decode(record.headers, record.value, models)
                if isinstance(event, PreferencePair | UnpairedExample):
                    found[event.pair_id] = _Origin(event.causes, event.traces)
        return False

    if wanted and offsets:
        await read_to_end(log, PREFERENCES, timeout_s=READ_TIMEOUT_S, keep=note)
    return found
