"""Recovery after a rebalance: partition states from what the row store holds."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import islice

from services.aggregator.partition import PartitionState

RECOVERY_CHUNK = 500
"""Rows read in one go while recovering."""


async def recover_states(states: Iterable[PartitionState]) -> None:
    """Let each state take over its checkpoint and the rows that the changelog brought since."""
    for state in states:
        state.recover()
        keys = state.stored.unsettled()
        while chunk := list(islice(keys, RECOVERY_CHUNK)):
            state.settle(chunk)
            await asyncio.sleep(0)
