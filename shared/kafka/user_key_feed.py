"""User key feed: reads `user-keys.v1` into the store, from where it ended, in a thread of its own."""

from __future__ import annotations

import asyncio
import enum
import math
import sqlite3
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from shared.backoff import Backoff
from shared.contracts.topics import USER_KEYS
from shared.kafka.log import EventLog, LogUnavailable, Positions, Record, Tail, TopicReplaced
from shared.kafka.user_key_store import Taken, UserKeyStore

log = structlog.get_logger(__name__)

BATCH = 1000
"""Records a transaction, and most that wait for one."""
WHOLE_TIMEOUT_S = 30.0
"""How long nothing may come before a reader gives up waiting for the topic's end."""
POLL_S = 0.02
LOOK_S = 1.0
"""How often is looked whether the topic was made anew."""
IN_FLIGHT_S = 0.05
"""How long an answer of the brokers may have lain in a socket: the tail dates it when it is taken up."""
RETRY_FIRST_S, RETRY_MAX_S = 0.2, 5.0
NOT_KEPT = "user keys cannot be kept below RATCHET_DATA_DIR, make room there or let it be written"

Result = TypeVar("Result")


class _Mark(enum.Enum):
    whole = enum.auto()
    """All records are behind that the topic had when reading began."""
    replaced = enum.auto()
    """The store is not this topic's, or damaged."""
    ended = enum.auto()


class UserKeyFeed:
    """See the module. Begins with `start`."""

    def __init__(
        self,
        event_log: EventLog,
        store: UserKeyStore,
        *,
        on_taken: Callable[[Taken], None],
        on_lost: Callable[[], None],
    ) -> None:
        """`on_lost` is called where the keys that were read are those of another topic."""
        self._log = event_log
        self._store = store
        self._on_taken = on_taken
        self._on_lost = on_lost
        self._running: asyncio.Task[None] | None = None
        self._tail: Tail | None = None
        self._handed = self._stored = 0
        """Records that the tail handed out, and those of them that are stored."""
        self._drained_at = -math.inf
        """When all were."""
        self._busy = False
        self._trouble = ""
        self._lost = False
        """What is stored may be wrong."""
        self.whole = False
        """Whether the topic was read to its end since the start."""

    def start(self) -> None:
        """Begin to read; a second call does nothing."""
        if self._running is None:
            self._running = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop reading, and close the store."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            self._running = None
        self._store.close()

    def unread(self) -> str:
        """Why the topic was not read to its end since the start; empty where it was."""
        if self.whole:
            return ""
        return self._trouble or f"{self._stored} records were read so far"

    def age_s(self) -> float:
        """Seconds since all was stored that the topic had. Infinite before that."""
        if self._tail is None or not self.whole:
            return math.inf
        if self._stored == self._handed:
            return self._tail.age_s()
        return max(self._tail.age_s(), time.monotonic() - self._drained_at)

    async def refresh(self) -> None:
        """Return once all is stored that the topic has now.

        Raises:
            LogUnavailable: nothing came for WHOLE_TIMEOUT_S, and the end was not reached.

        """
        self.start()
        asked = heard = time.monotonic()
        tail, stored, goal = self._tail, self._stored, math.inf
        while True:
            await asyncio.sleep(POLL_S)
            now = time.monotonic()
            if tail is not self._tail:
                tail, goal = self._tail, math.inf
            if tail is not None and goal == math.inf and tail.age_s() < now - asked - IN_FLIGHT_S:
                goal = self._handed
            if self.whole and self._stored >= goal:
                return
            if self._stored != stored or self._busy:
                stored, heard = self._stored, now
            elif now - heard > WHOLE_TIMEOUT_S:
                reason = self._trouble or f"nothing came for {WHOLE_TIMEOUT_S:g} s"
                raise LogUnavailable(f"{USER_KEYS} not read to the end: {reason}")

    def damaged(self, error: sqlite3.Error) -> None:
        """Take note that the store could not be read: where the file is at fault, it is made anew."""
        log.error("user_keys.file_unreadable", error=str(error))
        self._lost |= not isinstance(error, sqlite3.OperationalError)

    async def _run(self) -> None:
        backoff = Backoff(RETRY_FIRST_S, RETRY_MAX_S)
        while True:
            try:
                if self._lost:
                    self._on_lost()
                    await self._in_thread(self._store.reset)
                    self._lost = False
                await self._in_thread(self._store.open)
                await self._follow(backoff)
                continue
            except TopicReplaced as error:
                log.warning("user_keys.recreated", topic=USER_KEYS, error=str(error))
                self._lost = True
                continue
            except (sqlite3.OperationalError, OSError) as error:
                self._trouble = f"{NOT_KEPT}: {error}"
                log.warning("user_keys.not_kept", error=str(error))
            except sqlite3.DatabaseError as error:
                log.warning("user_keys.file_damaged", error=str(error))
                self._lost = True
            except Exception as error:
                # Ended by it, nobody would learn of a destroyed key any more.
                self._trouble = f"{type(error).__name__}: {error}"
                log.exception("user_keys.feed_failed")
            await asyncio.sleep(backoff.next_s())

    async def _follow(self, backoff: Backoff) -> None:
        """Store what comes, until it cannot be, or is another topic's."""
        self.whole, self._handed, self._stored = False, 0, 0
        begun = await self._in_thread(self._store.positions)
        tail = self._tail = self._log.tail(USER_KEYS, positions=begun)
        queue: asyncio.Queue[Record | _Mark] = asyncio.Queue(BATCH)
        collecting = asyncio.create_task(self._collect(tail, queue))
        watching = asyncio.create_task(self._watch(tail, begun, queue))
        try:
            while True:
                records, mark = await _batch(queue)
                if records:
                    taken = await self._in_thread(self._store.take, records)
                    self._stored += len(records)
                    self._on_taken(taken)
                match mark:
                    case _Mark.whole:
                        await self._in_thread(self._store.settle)
                        self.whole = True
                    case _Mark.replaced:
                        raise TopicReplaced("its end is before what is stored")
                    case _Mark.ended:
                        return collecting.result()
                    case None:
                        pass
                if self._stored == self._handed:
                    self._drained_at = time.monotonic()
                self._trouble = ""
                backoff.reset()
        finally:
            self.whole = False
            await tail.close()
            for task in (collecting, watching):
                task.cancel()
            await asyncio.gather(collecting, watching, return_exceptions=True)

    async def _collect(self, tail: Tail, queue: asyncio.Queue[Record | _Mark]) -> None:
        try:
            async for record in tail:
                self._handed += 1
                await queue.put(record)
        except Exception:
            await queue.put(_Mark.ended)
            raise
        await queue.put(_Mark.ended)

    async def _watch(
        self, tail: Tail, begun: Positions, queue: asyncio.Queue[Record | _Mark]
    ) -> None:
        """Say when all is read, and when the topic has less than was read of it."""
        await tail.caught_up(math.inf)
        before = {place: offset + 1 for place, offset in begun.items()}
        whole = False
        while not self._lost:
            now = tail.positions()
            if any(now.get(place, offset) < offset for place, offset in before.items()):
                break
            before.update(now)
            if not whole:
                await queue.put(_Mark.whole)
                whole = True
            await asyncio.sleep(LOOK_S)
        await queue.put(_Mark.replaced)

    async def _in_thread(self, call: Callable[..., Result], *arguments: object) -> Result:
        """As `to_thread`, but a cancelled caller waits: the file is not closed under the thread."""
        work = asyncio.create_task(asyncio.to_thread(call, *arguments))
        self._busy = True
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait((work,))
            raise
        finally:
            self._busy = False


async def _batch(queue: asyncio.Queue[Record | _Mark]) -> tuple[list[Record], _Mark | None]:
    """What waits: records up to the next mark, and that."""
    records: list[Record] = []
    item = await queue.get()
    while isinstance(item, Record):
        records.append(item)
        if len(records) == BATCH or queue.empty():
            return records, None
        item = queue.get_nowait()
    return records, item
