"""User keys: the key ring of people's texts, which follows `user-keys.v1` (envelope encryption).

A record is a data key wrapped by its tenant's key; its tombstone destroys it (crypto-shredding).
A writer issues a key, and waits for the brokers' acknowledgement, before it writes an event under it.
So whoever reads an event finds its keys by reading the topic to its end, or they are destroyed.
Keys are kept wrapped, in a file; those used last are kept unwrapped, in memory.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import Any, Generic, TypeVar

from shared.clock import Clock, SystemClock
from shared.contracts.events.user_keys import UserKeyIssued
from shared.contracts.subject import subjects_in
from shared.contracts.topics import USER_KEYS
from shared.kafka.log import (
    APPEND_TIMEOUT_S,
    EventLog,
    LogUnavailable,
    NewRecord,
    event_record,
)
from shared.kafka.user_key_feed import UserKeyFeed
from shared.kafka.user_key_store import Taken, UserKeyStore, WrappedKey
from shared.text_encryption import (
    FIELD,
    KEY_BYTES,
    DataKey,
    TextsUnreadable,
    encrypt_texts,
    forget_ciphers,
    tenant_key,
    unwrap_bytes,
    wrap_key,
)

SOURCE = "/ratchet/user-keys"
UNWRAPPED = 8192
"""Keys that are kept unwrapped, about 0.5 kB each."""
SAMPLE = 100
"""Newest keys of which the secrets must open one before a writer writes."""
CLOCK_SKEW_S = 60.0
"""How much the clocks of two machines may differ."""
STALE_S = 10.0
"""Age of what a writer knows of the topic above which it reads to the end before it writes: a key
that was destroyed meanwhile would take new texts with it."""
UNREADABLE = (
    "RATCHET_TEXT_KEY_FILE: another secret wrapped the keys of these texts, or their records were "
    "changed; use that secret, or add it on a further line of the file"
)

Value = TypeVar("Value")


class TextsLocked(LogUnavailable):
    """Texts are encrypted, and this process has no secret for them; waiting does not help."""


class _Recent(OrderedDict[str, Value], Generic[Value]):
    """The values that were used last, UNWRAPPED at most."""

    def find(self, name: str) -> Value | None:
        found = self.get(name)
        if found is not None:
            self.move_to_end(name)
        return found

    def keep(self, name: str, value: Value) -> None:
        self[name] = value
        if len(self) > UNWRAPPED:
            self.popitem(last=False)


class UserKeys:
    """Keys by id for whoever reads texts. Follows the topic once it is asked."""

    def __init__(
        self,
        event_log: EventLog,
        *secrets_of_file: bytes,
        folder: Path | None = None,
        origin: str = "",
    ) -> None:
        """Take the log and the secrets: the first wraps, all unwrap.

        Args:
            event_log: the log.
            secrets_of_file: the secrets.
            folder: where wrapped keys are kept over restarts; None: in a temporary file.
            origin: names the brokers, lest the keys of others be taken for theirs.

        """
        self._log = event_log
        self._secrets = secrets_of_file
        self._store = UserKeyStore(folder, origin)
        self._feed = UserKeyFeed(event_log, self._store, on_taken=self._take, on_lost=self._forget)
        self._unwrapped = _Recent[bytes]()
        """By key id."""
        self._unseen: dict[str, bytes] = {}
        """By key id, those of an issuer's that the topic has not brought yet."""

    def key(self, key_id: str) -> bytes | None:
        """The key; None where it is destroyed, once `find` has been asked for it.

        Raises:
            TextsLocked: none of the secrets wrapped it.
            LogUnavailable: the file cannot be read.

        """
        known = self._unwrapped.find(key_id) or self._unseen.get(key_id)
        if known is not None:
            return known
        stored = self._stored(key_id)
        if stored is None:
            return None
        opened = self._opened(stored)
        if opened is None:
            raise TextsLocked(UNREADABLE)
        return opened

    async def find(self, key_ids: Collection[str], *, written_ms: int = 0) -> None:
        """Return once each key is known, or is known to be destroyed.

        Args:
            key_ids: the keys.
            written_ms: when the brokers got what is encrypted with them; 0 is unknown.

        Raises:
            LogUnavailable: the topic's end was not reached in time, or the file cannot be read.
            TextsLocked: none of the secrets wrapped a key.

        """
        if not self._feed.whole:  # the file may hold what was destroyed since
            await self.refresh()
        elif not all(self._knows(key_id) for key_id in key_ids):
            read_to_s = time.time() - self._feed.age_s()
            if not written_ms or written_ms / 1000 + CLOCK_SKEW_S > read_to_s:
                await self.refresh()
        for key_id in key_ids:
            self.key(key_id)

    async def refresh(self) -> None:
        """Return once all is known that the topic has now.

        Raises:
            LogUnavailable: nothing came for WHOLE_TIMEOUT_S, and the end was not reached.

        """
        await self._feed.refresh()

    async def close(self) -> None:
        """Stop following."""
        await self._feed.close()

    def _knows(self, key_id: str) -> bool:
        try:
            return self.key(key_id) is not None
        except TextsLocked:
            return False

    def _stored(self, key_id: str) -> WrappedKey | None:
        try:
            return self._store.key(key_id)
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def _opened(self, stored: WrappedKey) -> bytes | None:
        """A stored key, unwrapped; None where no secret does that."""
        for secret in self._secrets:
            try:
                key = unwrap_bytes(tenant_key(secret, stored.tenant), stored.wrapped, stored.name)
            except TextsUnreadable:
                continue
            self._unwrapped.keep(stored.key_id, key)
            return key
        return None

    def _unreadable(self, error: sqlite3.Error) -> LogUnavailable:
        self._feed.damaged(error)
        return LogUnavailable(f"the file of user keys cannot be read: {error}")

    def _take(self, taken: Taken) -> None:
        """Follow what the store took."""
        for _, key_id in taken.destroyed:
            self._unwrapped.pop(key_id, None)
        if taken.destroyed:
            forget_ciphers()

    def _forget(self) -> None:
        """Forget the keys of a topic that was deleted and made anew: nobody else can read them."""
        self._unwrapped.clear()
        self._unseen.clear()
        forget_ciphers()


class UserKeyIssuer(UserKeys):
    """Keys for whoever writes texts: a person without a key gets one.

    `key_of` gives keys at once; what is written under them is written after `acknowledged`.
    """

    def __init__(
        self,
        event_log: EventLog,
        *secrets_of_file: bytes,
        folder: Path | None = None,
        origin: str = "",
        clock: Clock | None = None,
    ) -> None:
        """See UserKeys."""
        super().__init__(event_log, *secrets_of_file, folder=folder, origin=origin)
        self._clock = clock or SystemClock()
        self._fits = False
        """Whether the secrets open a key of the topic."""
        self._of_person = _Recent[DataKey]()
        """By subject."""
        self._unseen_of: dict[str, DataKey] = {}
        """By subject, those of `_unseen`."""
        self._pending: dict[str, NewRecord] = {}
        """Records of keys that the brokers have not acknowledged, by key id."""
        self._writing = asyncio.Lock()

    async def ready(self) -> None:
        """Return once the topic has been read to its end, lest people get further keys.

        Raises:
            LogUnavailable: it was not reached in time, or the file cannot be read.
            TextsLocked: the secrets open none of the newest keys: what is written under another one
                can be read by nobody else.

        """
        if self._feed.age_s() > STALE_S:
            await self.refresh()
        if self._fits:
            return
        try:
            newest = self._store.newest_keys(SAMPLE)
        except sqlite3.Error as error:
            raise self._unreadable(error) from error
        self._fits = any(self._opened(one) is not None for one in newest)
        if newest and not self._fits:
            raise TextsLocked(UNREADABLE)

    def key_of(self, tenant: str, subject: str) -> DataKey:
        """A key of the person's, made where there is none.

        Raises:
            LogUnavailable: the file cannot be read.

        """
        known = self._of_person.find(subject) or self._unseen_of.get(subject)
        if known is None:
            known = self._stored_of(subject) or self._issued(tenant, subject)
        return known

    def _stored_of(self, subject: str) -> DataKey | None:
        try:
            stored = self._store.keys_of(subject)
        except sqlite3.Error as error:
            raise self._unreadable(error) from error
        for one in stored:
            key = self._opened(one)
            if key is not None:
                self._of_person.keep(subject, (one.key_id, key))
                return one.key_id, key
        return None

    def _issued(self, tenant: str, subject: str) -> DataKey:
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
        self._unseen[key_id] = key
        self._unseen_of[subject] = key_id, key
        return key_id, key

    def _take(self, taken: Taken) -> None:
        super()._take(taken)
        for subject, key_id in (*taken.issued, *taken.destroyed):
            if self._unseen.pop(key_id, None) is not None:
                self._unseen_of.pop(subject, None)
        for subject, _ in taken.destroyed:
            self._of_person.pop(subject, None)

    def _forget(self) -> None:
        super()._forget()
        self._of_person.clear()
        self._unseen_of.clear()
        self._fits = False

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
