"""Prompts of the evaluation: those that nothing is trained on, by a hash. Pure."""

# pyright: strict
from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from heapq import heappop, heappush
from typing import Any

from services.training.dataset_rows import SEGMENTS, Row
from services.training.row_store import AnyRow, RowKey
from services.training.sides import DatasetRules
from services.training.spill import SpilledTable

Whole = Callable[[Any], Any]
"""Gives the row of a key; a row is its own."""


def itself(row: Any) -> Any:
    """The `Whole` of rows that are no keys."""
    return row


def evaluation_prompts(
    pools: Iterable[Iterable[AnyRow | RowKey]],
    trained: SpilledTable[bytes],
    rules: DatasetRules,
    whole: Whole = itself,
) -> list[Row]:
    """Prompts whose digest is not among those trained on: earlier pools first, within one by hash."""
    found: dict[bytes, Row] = {}
    for pool in pools:
        for one in _first_prompts(pool, rules.prompts - len(found), found, trained):
            found[one.prompt_digest] = _prompt_row(whole(one), rules)
    return list(found.values())


def _first_prompts(
    pool: Iterable[AnyRow | RowKey],
    wanted: int,
    found: Collection[bytes],
    trained: SpilledTable[bytes],
) -> list[AnyRow | RowKey]:
    """The last row of each of the prompts with the lowest ranks."""
    last: dict[bytes, AnyRow | RowKey] = {}
    ranks: list[tuple[float, bytes]] = []
    """The highest rank on top, so that no more than are wanted are kept."""
    for one in pool:
        name, place = one.prompt_digest, one.prompt_rank
        asks = one.asks if isinstance(one, RowKey) else bool(one.messages)
        if not asks or not wanted:
            continue
        if name in last:
            last[name] = one
        elif (len(last) < wanted or place < -ranks[0][0]) and not (
            name in found or name in trained
        ):
            last[name] = one
            heappush(ranks, (-place, name))
            if len(last) > wanted:
                del last[heappop(ranks)[1]]
    return [last[name] for _, name in sorted(ranks, reverse=True)]


def _prompt_row(one: AnyRow, rules: DatasetRules) -> Row:
    """A prompt with the segments that it belongs to, which the evaluation compares."""
    told = {name: one.meta[name] for name in SEGMENTS if one.meta.get(name)}
    return {**one.asked.row(), **({"meta": told} if told and rules.describe_prompts else {})}
