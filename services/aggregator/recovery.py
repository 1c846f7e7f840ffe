"""Recovery after a rebalance: partition states rebuilt from the table's changelog."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import MutableMapping

from services.aggregator.fold import FoldRules
from services.aggregator.partition import PartitionState
from services.aggregator.rows import partition_of

RECOVERY_CHUNK = 500
"""Rows read in one go while recovering."""


async def recover_states(
    stored: MutableMapping[bytes, bytes], owned: list[int], rules: FoldRules
) -> dict[int, PartitionState]:
    """The state of each owned partition from what the changelog holds; other rows are dropped."""
    keys: dict[int, list[bytes]] = defaultdict(list)
    for key in list(stored):
        partition = partition_of(key)
        if partition in owned:
            keys[partition].append(key)
        else:
            del stored[key]
    states: dict[int, PartitionState] = {}
    for partition in owned:
        state = states[partition] = PartitionState(partition, stored, rules)
        for start in range(0, max(1, len(keys[partition])), RECOVERY_CHUNK):
            state.recover(keys[partition][start : start + RECOVERY_CHUNK])
            await asyncio.sleep(0)
    return states
