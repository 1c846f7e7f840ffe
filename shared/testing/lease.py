"""A Lease that a test grants and takes away."""

from __future__ import annotations

import asyncio
import math
import time


class MemoryLease:
    """See Lease; granted from the beginning unless told otherwise."""

    def __init__(self, *, ours: bool = True) -> None:
        self._since = math.inf
        self._lost = asyncio.Event()
        self._lost.set()
        self.known = True
        """Whether the brokers are heard."""
        if ours:
            self.grant()

    def grant(self) -> None:
        """Give it to this process."""
        self._since = time.monotonic()
        self._lost.clear()

    def take(self) -> None:
        """Give it to another process."""
        self._since = math.inf
        self._lost.set()

    def held(self) -> bool:
        """See Lease.held."""
        return self.known and self._since < math.inf

    def since(self) -> float:
        """See Lease.since."""
        return self._since

    async def lost(self) -> None:
        """See Lease.lost."""
        await self._lost.wait()
