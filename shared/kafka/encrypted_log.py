"""Encrypted log: an EventLog whose records' texts are encrypted by person, for readers and writers.

Every event passes here on its way to bytes and back, so that nobody else need know. An event whose
person was erased is read with empty texts, and says so by the field `encrypted` that it keeps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypedDict

import structlog
from prometheus_client import CollectorRegistry, Counter

from shared.clock import Clock, SystemClock
from shared.connection_settings import KafkaSettings
from shared.contracts.events.base import Event
from shared.kafka.envelope import Headers
from shared.kafka.event_texts import ENCRYPTED_TOPICS, encrypted, opened
from shared.kafka.log import (
    APPEND_TIMEOUT_S,
    PER_TURN,
    EventLog,
    LogUnavailable,
    NewRecord,
    Position,
    Positions,
    Record,
    SingleAppends,
    Tail,
)
from shared.kafka.user_key_issuer import KeysNotInMemory, UserKeyIssuer
from shared.kafka.user_keys import TextsLocked, UserKeys
from shared.observability.events import Unavailable
from shared.settings import ServiceSettings
from shared.text_encryption import is_encrypted

log = structlog.get_logger(__name__)

RETRY_S = 1.0
UNSET = (
    "RATCHET_TEXT_KEY_FILE: not set, and texts are encrypted; give this process the file of the "
    "writers"
)


class DecryptingLog:
    """The log for readers: what it hands out has its texts. What is appended goes as it is.

    Without keys it hands out what is in clear, and stops at the first text that is not: it waits and
    says so, and a reading to the end is an error at once.
    """

    def __init__(
        self, inner: EventLog, keys: UserKeys | None, registry: CollectorRegistry | None = None
    ) -> None:
        self._inner = inner
        self._keys = keys
        self.issuer: UserKeyIssuer | None = None
        """Gives keys for texts that are kept beside the log; None: they are in clear."""
        self._locked = Counter(
            "ratchet_texts_locked_total",
            "Times that a reader stopped at an encrypted text because its secret is missing or wrong.",
            ("topic",),
            registry=registry,
        )

    async def start(self) -> None:
        """See EventLog.start."""
        await self._inner.start()

    async def stop(self) -> None:
        """See EventLog.stop."""
        if self._keys is not None:
            await self._keys.close()
        await self._inner.stop()

    async def append(
        self,
        topic: str,
        *,
        key: str,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
        timeout_s: float = APPEND_TIMEOUT_S,
    ) -> Position:
        """See EventLog.append."""
        return await self._inner.append(
            topic,
            key=key,
            value=value,
            headers=headers,
            partition=partition,
            timeout_s=timeout_s,
        )

    async def append_many(
        self, records: Sequence[NewRecord], *, timeout_s: float = APPEND_TIMEOUT_S
    ) -> list[Position]:
        """See EventLog.append_many."""
        return await self._inner.append_many(records, timeout_s=timeout_s)

    async def publish(
        self,
        topic: str,
        *,
        key: str,
        event: Event,
        event_id: str,
        traceparent: str = "",
        timeout_s: float = APPEND_TIMEOUT_S,
    ) -> Position:
        """See EventLog.publish."""
        return await self._inner.publish(
            topic,
            key=key,
            event=event,
            event_id=event_id,
            traceparent=traceparent,
            timeout_s=timeout_s,
        )

    def tail(
        self,
        *topics: str,
        since: Literal["earliest", "latest"] = "earliest",
        positions: Positions | None = None,
        newest: int | None = None,
    ) -> Tail:
        """See EventLog.tail."""
        inner = self._inner.tail(*topics, since=since, positions=positions, newest=newest)
        return inner if ENCRYPTED_TOPICS.isdisjoint(topics) else DecryptingTail(inner, self)

    async def opened(self, record: Record) -> Record:
        """A record with its texts; with empty texts where a key is destroyed.

        Raises:
            LogUnavailable: the keys cannot be read now.
            TextsLocked: this process has no secret for them.

        """
        value = record.value
        if value is None or record.topic not in ENCRYPTED_TOPICS or not is_encrypted(value):
            return record
        try:
            if self._keys is None:
                raise TextsLocked(UNSET)
            found = await opened(self._keys, value, record.headers, record.timestamp_ms)
        except TextsLocked:
            self._locked.labels(record.topic).inc()
            raise
        return replace(record, value=found)


class EncryptingLog(SingleAppends, DecryptingLog):
    """The log for services that write people's texts, too."""

    def __init__(
        self,
        inner: EventLog,
        keys: UserKeyIssuer,
        *,
        source: str,
        clock: Clock | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        super().__init__(inner, keys, registry)
        self.issuer = self._issuer = keys
        self._source = source
        self._clock = clock or SystemClock()

    async def append_many(
        self, records: Sequence[NewRecord], *, timeout_s: float = APPEND_TIMEOUT_S
    ) -> list[Position]:
        """See EventLog.append_many."""
        if all(record.topic not in ENCRYPTED_TOPICS for record in records):
            return await self._inner.append_many(records, timeout_s=timeout_s)
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                await self._issuer.ready()
                closed = await self._closed(records)
                await self._issuer.acknowledged(timeout_s / 2)
        except TimeoutError:
            raise LogUnavailable(f"no acknowledgement within {timeout_s:g} s") from None
        # Cut short from here, the log below would not learn that its producer is stuck.
        left_s = deadline - asyncio.get_running_loop().time()
        return await self._inner.append_many(closed, timeout_s=left_s)

    async def _closed(self, records: Sequence[NewRecord]) -> list[NewRecord]:
        """Records with their texts encrypted; keys that are not in memory are read together."""
        closed = list(records)
        unread: dict[str, str] = {}
        left: list[int] = []
        for place, record in enumerate(records):
            try:
                closed[place] = self._encrypted(record, memory_only=True)
            except KeysNotInMemory as error:
                unread.update(error.people)
                left.append(place)
            if place % PER_TURN == PER_TURN - 1:  # a router ships a megabyte at a time
                await asyncio.sleep(0)
        await self._issuer.find_of(unread)
        for turn, place in enumerate(left):
            closed[place] = self._encrypted(records[place])
            if turn % PER_TURN == PER_TURN - 1:
                await asyncio.sleep(0)
        return closed

    def _encrypted(self, record: NewRecord, *, memory_only: bool = False) -> NewRecord:
        if record.topic not in ENCRYPTED_TOPICS or record.value is None:
            return record
        value = encrypted(self._issuer, record.value, record.headers, memory_only=memory_only)
        return record._replace(value=value)


class DecryptingTail:
    """A Tail that hands out records with their texts."""

    def __init__(self, inner: Tail, log_: DecryptingLog) -> None:
        self._inner = inner
        self._log = log_
        self._locked = asyncio.Event()
        self._reason = ""

    def __aiter__(self) -> AsyncIterator[Record]:
        """See Tail."""
        return self._records()

    async def caught_up(self, timeout_s: float) -> None:
        """See Tail.caught_up.

        Raises:
            TextsLocked: texts are encrypted, and this process has no secret for them.

        """
        whole = asyncio.create_task(self._inner.caught_up(timeout_s))
        locked = asyncio.create_task(self._locked.wait())
        try:
            await asyncio.wait((whole, locked), return_when=asyncio.FIRST_COMPLETED)
            if self._locked.is_set():
                raise TextsLocked(self._reason)
            whole.result()
        finally:
            for task in (whole, locked):
                task.cancel()
            await asyncio.gather(whole, locked, return_exceptions=True)

    def age_s(self) -> float:
        """See Tail.age_s."""
        return self._inner.age_s()

    def positions(self) -> Positions:
        """See Tail.positions."""
        return self._inner.positions()

    async def close(self) -> None:
        """See Tail.close."""
        await self._inner.close()

    async def _records(self) -> AsyncIterator[Record]:
        async for record in self._inner:
            yield record if not is_encrypted(record.value) else await self._opened(record)

    async def _opened(self, record: Record) -> Record:
        """As a tail waits for brokers, it waits for keys, and hands out no event without its texts."""
        while True:
            try:
                found = await self._log.opened(record)
            except TextsLocked as error:
                if not self._locked.is_set():
                    log.warning("texts.locked", topic=record.topic, error=str(error))
                self._reason = str(error)
                self._locked.set()
            except LogUnavailable as error:
                log.warning(Unavailable.kafka, during="keys", topic=record.topic, error=str(error))
            else:
                self._locked.clear()
                return found
            await asyncio.sleep(RETRY_S)


def decrypting(
    inner: EventLog, settings: KafkaSettings, registry: CollectorRegistry | None = None
) -> DecryptingLog:
    """The log for a service that reads people's texts.

    Raises:
        CredentialsUnreadable: the file with the secrets cannot be read, or one is too short.

    """
    secrets = settings.text_secrets()
    keys = UserKeys(inner, *secrets, **_kept(settings)) if secrets else None
    return DecryptingLog(inner, keys, registry)


def encrypting(
    inner: EventLog,
    settings: KafkaSettings,
    *,
    source: str,
    registry: CollectorRegistry | None = None,
) -> DecryptingLog:
    """The log for a service that writes people's texts; in clear where there is no secret.

    Raises:
        CredentialsUnreadable: the file with the secrets cannot be read, or one is too short.

    """
    keys = issuer_of(inner, settings)
    if keys is None:
        return DecryptingLog(inner, None, registry)
    return EncryptingLog(inner, keys, source=source, registry=registry)


def issuer_of(inner: EventLog, settings: KafkaSettings) -> UserKeyIssuer | None:
    """Keys for whoever writes texts; None where they are not encrypted.

    Raises:
        CredentialsUnreadable: the file with the secrets cannot be read, or one is too short.

    """
    secrets = settings.text_secrets()
    return UserKeyIssuer(inner, *secrets, **_kept(settings)) if secrets else None


class _Kept(TypedDict):
    folder: Path | None
    origin: str


def _kept(settings: KafkaSettings) -> _Kept:
    """Where keys are kept over restarts: below a service's data directory; by a command nowhere."""
    data_dir = settings.data_dir if isinstance(settings, ServiceSettings) else None
    folder = None if data_dir is None else data_dir / "user-keys"
    return {"folder": folder, "origin": settings.kafka_bootstrap}
