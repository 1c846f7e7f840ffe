"""User keys: the key ring of people's texts, which follows `user-keys.v1` (envelope encryption).

A record is a data key wrapped by its tenant's key; its tombstone destroys it (crypto-shredding).
A writer issues a key, and waits for the brokers' acknowledgement, before it writes an event under it.
So whoever reads an event finds its keys by reading the topic to its end, or they are destroyed.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Collection

import structlog

from shared.clock import Clock, SystemClock
from shared.contracts.events.user_keys import UserKeyIssued
from shared.contracts.subject import subject_of
from shared.contracts.topics import USER_KEYS
from shared.kafka.envelope import UnreadableRecord, decode, models_by_type
from shared.kafka.log import (
    EventLog,
    LogUnavailable,
    NewRecord,
    Record,
    Tail,
    event_record,
    read_to_end,
)
from shared.text_encryption import (
    KEY_BYTES,
    DataKey,
    TextsUnreadable,
    tenant_key,
    unwrap_key,
    wrap_key,
)

log = structlog.get_logger(__name__)

SOURCE = "/ratchet/user-keys"
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
ROLL_S = 6.0
"""A little more than `segment.ms` of the topic."""
UNREADABLE = (
    "RATCHET_TEXT_KEY_FILE: another secret wrapped the keys of these texts, or their records were "
    "changed; use that secret"
)
MODELS = models_by_type(UserKeyIssued)


class UserKeys:
    """Keys by id, about 300 bytes each, for whoever reads texts. Follows the topic once it is asked."""

    def __init__(self, event_log: EventLog, secret: bytes) -> None:
        self._log = event_log
        self._secret = secret
        self._keys: dict[str, bytes] = {}
        self._ids: dict[str, list[str]] = {}
        """Subject -> ids of the person's keys, oldest first."""
        self._unreadable: set[str] = set()
        """Keys that another secret wrapped, or whose record was changed: they are not destroyed."""
        self._taken = 0
        """Records of the topic so far."""
        self._tail: Tail | None = None
        self._following: asyncio.Task[None] | None = None

    def key(self, key_id: str) -> bytes | None:
        """The key; None where it is destroyed, once `find` has been asked for it.

        Raises:
            LogUnavailable: the secret is not the one that wrapped it.

        """
        if key_id in self._unreadable:
            raise LogUnavailable(UNREADABLE)
        return self._keys.get(key_id)

    async def find(self, key_ids: Collection[str], *, written_ms: int = 0) -> None:
        """Return once each key is known, or is known to be destroyed.

        Args:
            key_ids: the keys.
            written_ms: when the brokers got what is encrypted with them; 0 is unknown.

        Raises:
            LogUnavailable: the topic's end was not reached in time, or the secret is not the one that
                wrapped a key.

        """
        if all(key_id in self._keys for key_id in key_ids):
            return
        read_to_s = time.time() - self._follow().age_s()
        if not written_ms or written_ms / 1000 + CLOCK_SKEW_S > read_to_s:
            await self.refresh()
        if any(key_id in self._unreadable for key_id in key_ids):
            raise LogUnavailable(UNREADABLE)

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
        subject, _, key_id = record.key.partition(":")
        if record.value is None:
            self._keys.pop(key_id, None)
            self._unreadable.discard(key_id)
            left = [one for one in self._ids.pop(subject, ()) if one != key_id]
            if left:
                self._ids[subject] = left
            return
        if key_id in self._keys:
            return
        try:
            issued = decode(record.headers, record.value, MODELS)
            assert isinstance(issued, UserKeyIssued)
            key = unwrap_key(tenant_key(self._secret, issued.tenant), issued.wrapped, record.key)
        except (UnreadableRecord, TextsUnreadable) as error:
            self._unreadable.add(key_id)
            log.warning("user_keys.unreadable", offset=record.offset, error=str(error))
        else:
            self._keys[key_id] = key
            self._ids.setdefault(subject, []).append(key_id)


class UserKeyIssuer(UserKeys):
    """Keys for whoever writes texts: a person without a key gets one.

    `key_of` gives keys at once; what is written under them is written after `acknowledged`.
    """

    def __init__(self, event_log: EventLog, secret: bytes, *, clock: Clock | None = None) -> None:
        super().__init__(event_log, secret)
        self._clock = clock or SystemClock()
        self._pending: dict[str, NewRecord] = {}
        """Records of keys that the brokers have not acknowledged, by key id."""
        self._writing = asyncio.Lock()

    async def ready(self) -> None:
        """Return once the topic has been read to its end, lest people get further keys.

        Raises:
            LogUnavailable: it was not reached in time, or the secret opens none of the keys: what
                is written under another one can be read by nobody else.

        """
        if self._follow().age_s() > STALE_S:
            await self.refresh()
        if self._unreadable and not self._keys:
            raise LogUnavailable(UNREADABLE)

    def key_of(self, tenant: str, user_id: str) -> DataKey:
        """A key of the person's, made where there is none."""
        subject = subject_of(tenant, user_id)
        known = self._ids.get(subject)
        if known:
            return known[0], self._keys[known[0]]
        key_id, key = secrets.token_hex(8), secrets.token_bytes(KEY_BYTES)
        name = f"{subject}:{key_id}"
        now = self._clock.now()
        issued = UserKeyIssued(
            key_id=key_id,
            tenant=tenant,
            subject=subject,
            wrapped=wrap_key(tenant_key(self._secret, tenant), key, name),
            issued_at=now,
        )
        self._pending[key_id] = event_record(
            USER_KEYS, issued, key=name, source=SOURCE, event_id=key_id, time=now
        )
        self._keys[key_id] = key
        self._ids[subject] = [key_id]
        return key_id, key

    async def acknowledged(self) -> None:
        """Return once the brokers have every key that was given out before this call.

        Raises:
            LogUnavailable: they did not acknowledge in time.

        """
        awaited = set(self._pending)
        if not awaited:
            return
        async with self._writing:
            if awaited.isdisjoint(self._pending):
                return
            written = dict(self._pending)
            await self._log.append_many(list(written.values()))
            for key_id in written:
                self._pending.pop(key_id, None)


async def destroy_keys(event_log: EventLog, subjects: Collection[str]) -> int:
    """Destroy all keys of some people; returns how many there were.

    Brokers compact no active segment, so a second tombstone after `ROLL_S` closes the one that holds
    the first (`segment.ms` of the topic); the cleaner then takes the keys from the disk.

    Raises:
        LogUnavailable: it is not done; ask again.

    """
    found: set[str] = set()  # destroyed ones too: this may be the second try

    def note(record: Record) -> bool:
        if record.key.partition(":")[0] in subjects:
            found.add(record.key)
        return False

    await read_to_end(event_log, USER_KEYS, timeout_s=WHOLE_TIMEOUT_S, keep=note)
    tombstones = [NewRecord(USER_KEYS, name, None) for name in sorted(found)]
    if tombstones:
        await event_log.append_many(tombstones)
        await asyncio.sleep(ROLL_S)
        await event_log.append_many(tombstones)
    return len(tombstones)
