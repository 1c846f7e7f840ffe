"""Encrypted log: an EventLog whose records' texts are encrypted by person, for readers and writers.

Every event passes here on its way to bytes and back, so that nobody else need know. An event whose
person was erased is read with empty texts, and says so by the field `encrypted` that it keeps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import orjson
import structlog

from shared.clock import Clock, SystemClock
from shared.contracts.events.base import Event
from shared.contracts.subject import users_in
from shared.contracts.topics import (
    ANNOTATIONS,
    EXAMPLES,
    FEEDBACK,
    INTERACTIONS,
    PREFERENCES,
    RATED,
)
from shared.kafka.envelope import Headers, header
from shared.kafka.log import (
    APPEND_TIMEOUT_S,
    PER_TURN,
    EventLog,
    LogUnavailable,
    NewRecord,
    Position,
    Positions,
    Record,
    Tail,
    event_record,
)
from shared.kafka.user_keys import UserKeyIssuer, UserKeys
from shared.observability.events import Unavailable
from shared.settings import KafkaSettings
from shared.text_encryption import (
    FIELD,
    DataKey,
    TextsUnreadable,
    decrypt_texts,
    encrypt_texts,
    is_encrypted,
    key_ids_in,
)

log = structlog.get_logger(__name__)

RETRY_S = 1.0
ENCRYPTED_TOPICS = frozenset((ANNOTATIONS, EXAMPLES, FEEDBACK, INTERACTIONS, PREFERENCES, RATED))


async def opened(keys: UserKeys, value: bytes, headers: Headers, written_ms: int) -> bytes:
    """An event's JSON with its texts; with empty texts where a key is destroyed.

    What was changed or cut, as dead letters of long records are, comes back as it is: whoever reads
    it says what is wrong with it.

    Raises:
        LogUnavailable: the keys cannot be read now.

    """
    try:
        body: Any = orjson.loads(value)
        await keys.find(key_ids_in(body), written_ms=written_ms)
        decrypt_texts(body, place_of(headers), keys.key)
    except (orjson.JSONDecodeError, TextsUnreadable) as error:
        log.warning("texts.unreadable", place=place_of(headers), error=str(error))
        return value
    return orjson.dumps(body)


def encrypted(keys: UserKeyIssuer, value: bytes, headers: Headers) -> bytes:
    """An event's JSON with its texts encrypted for all people that it names; as it is for nobody."""
    body: dict[str, Any] = orjson.loads(value)
    tenant = str(body.get("tenant", ""))
    users = sorted({user for user in users_in(body) if user})
    if not users or FIELD in body:
        return value

    def keys_of() -> list[DataKey]:
        return [keys.key_of(tenant, user) for user in users]

    return orjson.dumps(body) if encrypt_texts(body, place_of(headers), keys_of) else value


def place_of(headers: Headers) -> str:
    """What an event's ciphertext is bound to: its type and id."""
    return f"{header(headers, 'ce_type')}\0{header(headers, 'ce_id')}"


class DecryptingLog:
    """The log for readers: what it hands out has its texts. What is appended goes as it is."""

    def __init__(self, inner: EventLog, keys: UserKeys) -> None:
        self._inner = inner
        self._keys = keys

    async def start(self) -> None:
        """See EventLog.start."""
        await self._inner.start()

    async def stop(self) -> None:
        """See EventLog.stop."""
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
        record = NewRecord(topic, key, value, headers, partition)
        return (await self.append_many((record,), timeout_s=timeout_s))[0]

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
        return inner if ENCRYPTED_TOPICS.isdisjoint(topics) else DecryptingTail(inner, self._keys)


class EncryptingLog(DecryptingLog):
    """The log for services that write people's texts, too."""

    def __init__(
        self, inner: EventLog, keys: UserKeyIssuer, *, source: str, clock: Clock | None = None
    ) -> None:
        super().__init__(inner, keys)
        self._issuer = keys
        self._source = source
        self._clock = clock or SystemClock()

    async def append_many(
        self, records: Sequence[NewRecord], *, timeout_s: float = APPEND_TIMEOUT_S
    ) -> list[Position]:
        """See EventLog.append_many."""
        if all(record.topic not in ENCRYPTED_TOPICS for record in records):
            return await self._inner.append_many(records, timeout_s=timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                await self._issuer.ready()
                closed: list[NewRecord] = []
                for record in records:
                    closed.append(self._encrypted(record))
                    if len(closed) % PER_TURN == 0:  # a router ships a megabyte at a time
                        await asyncio.sleep(0)
                await self._issuer.acknowledged()
                return await self._inner.append_many(closed, timeout_s=timeout_s)
        except TimeoutError:
            raise LogUnavailable(f"no acknowledgement within {timeout_s:g} s") from None

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
        record = event_record(
            topic,
            event,
            key=key,
            source=self._source,
            event_id=event_id,
            time=self._clock.now(),
            traceparent=traceparent,
        )
        return (await self.append_many((record,), timeout_s=timeout_s))[0]

    def _encrypted(self, record: NewRecord) -> NewRecord:
        if record.topic not in ENCRYPTED_TOPICS or record.value is None:
            return record
        return record._replace(value=encrypted(self._issuer, record.value, record.headers))


class DecryptingTail:
    """A Tail that hands out records with their texts."""

    def __init__(self, inner: Tail, keys: UserKeys) -> None:
        self._inner = inner
        self._keys = keys

    def __aiter__(self) -> AsyncIterator[Record]:
        """See Tail."""
        return self._records()

    async def caught_up(self, timeout_s: float) -> None:
        """See Tail.caught_up."""
        await self._inner.caught_up(timeout_s)

    def age_s(self) -> float:
        """See Tail.age_s."""
        return self._inner.age_s()

    async def close(self) -> None:
        """See Tail.close."""
        await self._inner.close()

    async def _records(self) -> AsyncIterator[Record]:
        async for record in self._inner:
            value = record.value
            if value is None or not is_encrypted(value):
                yield record
                continue
            yield replace(record, value=await self._opened(record, value))

    async def _opened(self, record: Record, value: bytes) -> bytes:
        """As a tail waits for brokers, it waits for keys, and hands out no event without its texts."""
        while True:
            try:
                return await opened(self._keys, value, record.headers, record.timestamp_ms)
            except LogUnavailable as error:
                log.warning(Unavailable.kafka, during="keys", topic=record.topic, error=str(error))
                await asyncio.sleep(RETRY_S)


def decrypting(inner: EventLog, settings: KafkaSettings) -> EventLog:
    """The log for a service that reads people's texts; itself where none are encrypted.

    Raises:
        CredentialsUnreadable: the file with the secret cannot be read, or the secret is too short.

    """
    secret = settings.text_secret()
    return DecryptingLog(inner, UserKeys(inner, secret)) if secret else inner


def encrypting(inner: EventLog, settings: KafkaSettings, *, source: str) -> EventLog:
    """The log for a service that writes people's texts; itself where none are encrypted.

    Raises:
        CredentialsUnreadable: the file with the secret cannot be read, or the secret is too short.

    """
    secret = settings.text_secret()
    return EncryptingLog(inner, UserKeyIssuer(inner, secret), source=source) if secret else inner
