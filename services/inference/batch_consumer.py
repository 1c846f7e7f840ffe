"""Consumer of generation requests, in a group of the engine's base.

Workers whose engines serve the same base, by name and files, are one consumer group, however many sets of
engines they belong to: each request is made by one of them, and by another where that one dies. Those of
another base are a group of their own and read every request, too, as each group leaves the other's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from hashlib import blake2b
from typing import Any, Protocol

import structlog

log = structlog.get_logger(__name__)

GROUPS = "ratchet.inference"
"""What the names of the groups begin with."""
DIGEST_BYTES = 8


class GroupConsumer(Protocol):
    """The part of `ConsumerLoop` that is used."""

    def idle_s(self) -> float:
        """Seconds without progress."""
        ...

    def behind(self) -> dict[tuple[str, str], int]:
        """Records not handled yet, by group and topic."""
        ...

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop` is set."""
        ...


class BatchConsumer:
    """Runs a consumer in the group of the present base, and in another once the base changes."""

    def __init__(
        self,
        consumer_in: Callable[[str], GroupConsumer],
        base_other_than: Callable[[str], Coroutine[Any, Any, str]],
    ) -> None:
        """Wire the consumer.

        Args:
            consumer_in: Makes the consumer of a group.
            base_other_than: Waits for a base other than a given one; `Agent.base_other_than`.

        """
        self._consumer_in = consumer_in
        self._base_other_than = base_other_than
        self._consumer: GroupConsumer | None = None

    def idle_s(self) -> float:
        """Seconds without progress; none while no base is known."""
        return 0.0 if self._consumer is None else self._consumer.idle_s()

    def behind(self) -> dict[tuple[str, str], int]:
        """Requests that are not answered yet, by group and topic; none while no base is known."""
        return {} if self._consumer is None else self._consumer.behind()

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop` is set."""
        stopping: asyncio.Task[Any] = asyncio.create_task(stop.wait())
        base = ""
        try:
            while not stop.is_set():
                base = await self._consume(base, stopping) or base
        finally:
            stopping.cancel()

    async def _consume(self, base: str, stopping: asyncio.Task[Any]) -> str:
        """Consume for a base until it changes; returns the next one, or nothing on a stop."""
        left = asyncio.Event()
        changed: asyncio.Task[Any] = asyncio.create_task(self._base_other_than(base))
        consuming: list[asyncio.Task[Any]] = []
        if base:
            group = group_of(base)
            log.info("batch.group", group=group)
            self._consumer = self._consumer_in(group)
            consuming.append(asyncio.create_task(self._consumer.run(left)))
        try:
            await asyncio.wait((stopping, changed, *consuming), return_when=asyncio.FIRST_COMPLETED)
            left.set()
            await asyncio.gather(*consuming)
            return changed.result() if changed.done() else ""
        finally:
            for task in (changed, *consuming):
                task.cancel()
            # A consumer that is cancelled leaves its group before this one ends.
            await asyncio.gather(changed, *consuming, return_exceptions=True)


def group_of(base: str) -> str:
    """The consumer group of a base, as `Agent.base_key` names it."""
    return f"{GROUPS}.{blake2b(base.encode(), digest_size=DIGEST_BYTES).hexdigest()}"
