"""Shipper of the spool: sends what is spooled to the brokers, oldest first."""

from __future__ import annotations

import asyncio
import zlib

import structlog

from services.router.spool import Spool
from shared.backoff import Backoff
from shared.kafka.deadletters import DeadLetters
from shared.kafka.log import EventLog, LogUnavailable, NewRecord, Record, RecordRefused
from shared.observability.events import Unavailable

log = structlog.get_logger(__name__)

SHIP_TIMEOUT_S = 15.0
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0


class SpoolShipper:
    """Sends what is spooled, oldest first, for as long as it takes."""

    def __init__(
        self,
        spool: Spool,
        event_log: EventLog,
        dead_letters: DeadLetters,
        *,
        gather_s: float = 0.0,
    ) -> None:
        """`gather_s` is how long a batch may grow, in seconds: fewer rounds cost less."""
        self._gather_s = gather_s
        self._spool = spool
        self._log = event_log
        self._dead_letters = dead_letters
        self._backoff = Backoff(BACKOFF_FIRST_S, BACKOFF_MAX_S)
        self.refused = 0
        """Records that the brokers refused for good."""

    async def run(self) -> None:
        """Ship until cancelled."""
        while True:
            await self._spool.wait()
            if self._gather_s:
                await asyncio.sleep(self._gather_s)
            if not await self.ship():
                await asyncio.sleep(self._backoff.next_s())

    async def drain(self, timeout_s: float | None) -> bool:
        """Ship all that waits; tells whether all went.

        With `timeout_s` it takes at most so many seconds, and tries as often as they allow; without,
        an outage is waited out with back-off.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not self._spool.empty:
                    if not await self.ship():
                        pause_s = self._backoff.next_s() if timeout_s is None else BACKOFF_FIRST_S
                        await asyncio.sleep(pause_s)
        except TimeoutError:
            return False
        return True

    async def ship(self) -> bool:
        """Send one batch and trim it; False where brokers or disk are to be tried again."""
        try:
            records, place = await self._spool.next_batch()
            if records:
                await self._send(records)
        except LogUnavailable as error:
            waiting = self._spool.bytes
            log.warning(Unavailable.kafka, during="ship", waiting_bytes=waiting, error=str(error))
            return False
        except OSError as error:
            log.warning("spool.read_failed", waiting_bytes=self._spool.bytes, error=str(error))
            return False
        self._spool.trim(place)
        self._backoff.reset()
        return True

    async def _send(self, records: list[NewRecord]) -> None:
        """Send records; those that the brokers refuse for good are stepped over.

        Raises:
            LogUnavailable: not all were acknowledged.

        """
        try:
            await self._log.append_many(records, timeout_s=SHIP_TIMEOUT_S)
        except RecordRefused as error:
            if len(records) > 1:
                middle = len(records) // 2
                await self._send(records[:middle])
                await self._send(records[middle:])
                return
            await self._bury(records[0], error)

    async def _bury(self, record: NewRecord, error: RecordRefused) -> None:
        """Leave a dead letter in place of a record that no retry can store.

        It has no offset; a checksum of its key stands there, so that its letter has its own id.
        """
        never = Record(
            topic=record.topic,
            partition=-1,
            offset=zlib.crc32(record.key.encode()),
            key=record.key,
            value=record.value,
            headers=record.headers,
            timestamp_ms=0,
        )
        await self._dead_letters.put(never, "too_large", str(error))
        self.refused += 1
        log.error("spool.record_refused", topic=record.topic, key=record.key, error=str(error))
