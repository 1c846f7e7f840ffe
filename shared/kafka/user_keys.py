"""User keys: the key ring of people's texts, which follows `user-keys.v1` (envelope encryption).

A record is a data key wrapped by its tenant's key; its tombstone destroys it (crypto-shredding).
A writer issues a key, and waits for the brokers' acknowledgement, before it writes an event under it.
So whoever reads an event finds its keys by reading the topic to its end, or they are destroyed.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Collection, Sequence
from typing import Any

import structlog

from shared.clock import Clock, SystemClock
from shared.contracts.events.user_keys import UserKeyIssued
from shared.contracts.subject import subjects_in
from shared.contracts.topics import USER_KEYS
from shared.kafka.envelope import UnreadableRecord, decode, models_by_type
from shared.kafka.log import (
    APPEND_TIMEOUT_S,
    EventLog,
    LogUnavailable,
    NewRecord,
    Record,
    Tail,
    event_record,
)
from shared.text_encryption import (
    FIELD,
    KEY_BYTES,
    DataKey,
    TextsUnreadable,
    encrypt_texts,
    forget_ciphers,
    tenant_key,
    unwrap_key,
    wrap_key,
)

log = structlog.get_logger(__name__)

SOURCE = "/ratchet/user-keys"
SUBJECT_DIGITS = 32
"""Of a subject's 64: 128 bits tell people apart."""
WHOLE_TIMEOUT_S = 30.0
"""How long nothing may come before a reader gives up waiting for the topic's end: a million keys
take half a minute to read."""
POLL_S = 0.02
IN_FLIGHT_S = 0.05
"""How long an answer of the brokers may have lain in a socket: the tail dates it when it is taken up."""
CLOCK_SKEW_S = 60.0
"""How much the clocks of two machines may differ."""
STALE_S = 10.0
"""Age of what a writer knows of the topic above which it reads to the end before it writes: a key
that was destroyed meanwhile would take new texts with it."""
UNREADABLE = (
    "RATCHET_TEXT_KEY_FILE: another secret wrapped the keys of these texts, or their records were "
    "changed; use that secret, or add it on a further line of the file"
)
MODELS = models_by_type(UserKeyIssued)


class TextsLocked(LogUnavailable):
    """Texts are encrypted, and this process has no secret for them; waiting does not help."""


def unwrapped(secrets_of_file: Sequence[bytes], record: Record) -> tuple[UserKeyIssued, bytes, int]:
    """A key's event, the key, and the place of the secret that wrapped it.

    Raises:
        UnreadableRecord: it is no event of a key.
        TextsUnreadable: none of the secrets wrapped it, or it was changed.

    """
    issued = decode(record.headers, record.value, MODELS)
    assert isinstance(issued, UserKeyIssued)
    for place, secret in enumerate(secrets_of_file):
        try:
            key = unwrap_key(tenant_key(secret, issued.tenant), issued.wrapped, record.key)
        except TextsUnreadable:
            continue
        return issued, key, place
    raise TextsUnreadable(f"key {record.key} was wrapped under another secret, or changed")


class UserKeys:
    """Keys by id for whoever reads texts. Follows the topic once it is asked.

    Of a person with one key it holds two entries of a dictionary, about 50 bytes each, the key (80)
    and two numbers (48 each): the id of the key, and 128 bits of the subject.
    """

    def __init__(self, event_log: EventLog, *secrets_of_file: bytes) -> None:
        """Take the log and the secrets: the first wraps, all unwrap."""
        self._log = event_log
        self._secrets = secrets_of_file
        self._keys: dict[int, bytes] = {}
        self._ids: dict[int, int | tuple[int, ...]] = {}
        """Subject -> ids of the person's keys, oldest first; of one key the id itself."""
        self._unreadable: set[int] = set()
        """Keys that another secret wrapped, or whose record was changed: they are not destroyed."""
        self._taken = 0
        """Records of the topic so far."""
        self._offsets: dict[int, int] = {}
        """Partition -> offset of the newest record."""
        self._tail: Tail | None = None
        self._following: asyncio.Task[None] | None = None

    def key(self, key_id: str) -> bytes | None:
        """The key; None where it is destroyed, once `find` has been asked for it.

        Raises:
            TextsLocked: none of the secrets wrapped it.

        """
        number = _number(key_id)
        if number in self._unreadable:
            raise TextsLocked(UNREADABLE)
        return self._keys.get(number)

    async def find(self, key_ids: Collection[str], *, written_ms: int = 0) -> None:
        """Return once each key is known, or is known to be destroyed.

        Args:
            key_ids: the keys.
            written_ms: when the brokers got what is encrypted with them; 0 is unknown.

        Raises:
            LogUnavailable: the topic's end was not reached in time.
            TextsLocked: none of the secrets wrapped a key.

        """
        numbers = [_number(key_id) for key_id in key_ids]
        if all(one in self._keys for one in numbers):
            return
        read_to_s = time.time() - self._follow().age_s()
        if not written_ms or written_ms / 1000 + CLOCK_SKEW_S > read_to_s:
            await self.refresh()
        if any(one in self._unreadable for one in numbers):
            raise TextsLocked(UNREADABLE)

    async def refresh(self) -> None:
        """Return once all is known that the topic has now.

        Raises:
            LogUnavailable: nothing came for WHOLE_TIMEOUT_S, and the end was not reached.

        """
        tail = self._follow()
        asked = heard = time.monotonic()
        taken = self._taken
        while True:
            await asyncio.sleep(POLL_S)
            now = time.monotonic()
            if tail.age_s() < now - asked - IN_FLIGHT_S:
                return
            if self._taken > taken:
                taken, heard = self._taken, now
            elif now - heard > WHOLE_TIMEOUT_S:
                raise LogUnavailable(
                    f"{USER_KEYS} not read to the end: nothing came for {WHOLE_TIMEOUT_S:g} s"
                )

    async def close(self) -> None:
        """Stop following."""
        if self._tail is not None and self._following is not None:
            await self._tail.close()
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
            self._tail = self._following = None

    def _follow(self) -> Tail:
        if self._tail is None:
            self._tail = self._log.tail(USER_KEYS)
            self._following = asyncio.create_task(self._take_all(self._tail))
        return self._tail

    async def _take_all(self, tail: Tail) -> None:
        async for record in tail:
            self._take(record)

    def _take(self, record: Record) -> None:
        self._taken += 1
        if record.offset <= self._offsets.get(record.partition, -1):
            self._forget()
        self._offsets[record.partition] = record.offset
        subject, _, key_id = record.key.partition(":")
        number = _number(key_id)
        if record.value is None:
            self._destroy(_number(subject[:SUBJECT_DIGITS]), number)
            return
        if number in self._keys:
            return
        try:
            _, key, _ = unwrapped(self._secrets, record)
        except (UnreadableRecord, TextsUnreadable) as error:
            self._unreadable.add(number)
            log.warning("user_keys.unreadable", offset=record.offset, error=str(error))
        else:
            self._unreadable.discard(number)
            self._put(subject, number, key)

    def _put(self, subject: str, number: int, key: bytes) -> None:
        self._keys[number] = key
        person = _number(subject[:SUBJECT_DIGITS])
        known = self._numbers_of(person)
        self._ids[person] = (*known, number) if known else number

    def _destroy(self, person: int, number: int) -> None:
        self._unreadable.discard(number)
        if self._keys.pop(number, None) is not None:
            forget_ciphers()
        left = tuple(one for one in self._numbers_of(person) if one != number)
        if left:
            self._ids[person] = left[0] if len(left) == 1 else left
        else:
            self._ids.pop(person, None)

    def _numbers_of(self, person: int) -> tuple[int, ...]:
        found = self._ids.get(person, ())
        return found if isinstance(found, tuple) else (found,)

    def _forget(self) -> None:
        """Forget the keys of a topic that was deleted and made anew: nobody else can read them."""
        log.error("user_keys.recreated", topic=USER_KEYS, keys=len(self._keys))
        for known in (self._keys, self._ids, self._unreadable, self._offsets):
            known.clear()
        forget_ciphers()


class UserKeyIssuer(UserKeys):
    """Keys for whoever writes texts: a person without a key gets one.

    `key_of` gives keys at once; what is written under them is written after `acknowledged`.
    """

    def __init__(
        self, event_log: EventLog, *secrets_of_file: bytes, clock: Clock | None = None
    ) -> None:
        super().__init__(event_log, *secrets_of_file)
        self._clock = clock or SystemClock()
        self._pending: dict[str, NewRecord] = {}
        """Records of keys that the brokers have not acknowledged, by key id."""
        self._writing = asyncio.Lock()

    async def ready(self) -> None:
        """Return once the topic has been read to its end, lest people get further keys.

        Raises:
            LogUnavailable: it was not reached in time.
            TextsLocked: the secrets open none of the keys: what is written under another one can be
                read by nobody else.

        """
        if self._follow().age_s() > STALE_S:
            await self.refresh()
        if self._unreadable and not self._keys:
            raise TextsLocked(UNREADABLE)

    def key_of(self, tenant: str, subject: str) -> DataKey:
        """A key of the person's, made where there is none."""
        for number in self._numbers_of(_number(subject[:SUBJECT_DIGITS])):
            return f"{number:016x}", self._keys[number]
        key_id, key = secrets.token_hex(8), secrets.token_bytes(KEY_BYTES)
        name = f"{subject}:{key_id}"
        now = self._clock.now()
        issued = UserKeyIssued(
            key_id=key_id,
            tenant=tenant,
            subject=subject,
            wrapped=wrap_key(tenant_key(self._secrets[0], tenant), key, name),
            issued_at=now,
        )
        self._pending[key_id] = event_record(
            USER_KEYS, issued, key=name, source=SOURCE, event_id=key_id, time=now
        )
        self._put(subject, _number(key_id), key)
        return key_id, key

    def close_texts(self, body: dict[str, Any], place: str) -> bool:
        """Encrypt the texts of an event's JSON, in place, for all people that it names.

        False where it names nobody, or has no texts in clear.
        """
        people = () if FIELD in body else subjects_in(body)
        tenant = str(body.get("tenant", ""))
        return bool(people) and encrypt_texts(
            body, place, lambda: [self.key_of(tenant, subject) for subject in people]
        )

    async def acknowledged(self, timeout_s: float = APPEND_TIMEOUT_S) -> None:
        """Return once the brokers have every key that was given out before this call.

        Raises:
            LogUnavailable: they did not acknowledge within `timeout_s` seconds.

        """
        awaited = set(self._pending)
        if not awaited:
            return
        async with self._writing:
            if awaited.isdisjoint(self._pending):
                return
            written = dict(self._pending)
            await self._log.append_many(list(written.values()), timeout_s=timeout_s)
            for key_id in written:
                self._pending.pop(key_id, None)


def _number(hexadecimal: str) -> int:
    """An id as a number, which takes half the memory; -1, which no key has, for any other text."""
    try:
        return int(hexadecimal, 16)
    except ValueError:
        return -1
