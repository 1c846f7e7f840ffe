"""Notices that a client went away while its request runs, and ends the request's task."""

from __future__ import annotations

import asyncio

from shared.observability.health import Receive

GRACE_S = 0.05
"""Most answers are there earlier; those never pay for a watching task."""


class Watch:
    """Cancels the task that made it when the client disconnects; `gone` tells that it did."""

    __slots__ = ("_handle", "_receive", "_task", "_watcher", "gone")

    def __init__(self, receive: Receive) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self._handle = loop.call_later(GRACE_S, self._begin)
        self.gone = False

    def stop(self) -> None:
        """Stop watching: the answer is there."""
        self._handle.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _begin(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self._task.cancel()
