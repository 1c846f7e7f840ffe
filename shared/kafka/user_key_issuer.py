"""User key issuer: the user keys of whoever writes texts, which gives a person without a key one."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shared.clock import Clock, SystemClock
from shared.contracts.events.user_keys import UserKeyIssued
from shared.contracts.subject import subjects_in
from shared.contracts.topics import USER_KEYS
from shared.kafka.log import APPEND_TIMEOUT_S, EventLog, NewRecord, event_record
from shared.kafka.user_key_store import Taken
from shared.kafka.user_keys import UNREADABLE, Recent, TextsLocked, UserKeys
from shared.text_encryption import FIELD, KEY_BYTES, DataKey, encrypt_texts, tenant_key, wrap_key

SOURCE = "/ratchet/user-keys"
SAMPLE = 100
"""Newest keys of which the secrets must open one before a writer writes."""
STALE_S = 10.0
"""Age of what a writer knows of the topic above which it reads to the end before it writes: a key
that was destroyed meanwhile would take new texts with it."""


class KeysNotInMemory(Exception):
    """Keys of people are not in memory; `find_of` gets them."""

    def __init__(self, people: Mapping[str, str]) -> None:
        super().__init__(f"keys of {len(people)} people are not in memory")
        self.people = people
        """Tenants by subject."""


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
        self._brought, self._looked_at = 0, -1
        """Keys that the topic brought since the start, and how many they were when that was tried."""
        self._of_person = Recent[DataKey]()
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
        if self._fits or self._looked_at == self._brought:
            return
        brought = self._brought
        with self._readable():
            opens = await asyncio.to_thread(self._opens_newest)
        if opens is False:
            raise TextsLocked(UNREADABLE)
        self._fits, self._looked_at = bool(opens), brought

    def key_of(self, tenant: str, subject: str) -> DataKey:
        """A key of the person's, made where there is none.

        Raises:
            LogUnavailable: the file cannot be read.

        """
        known = self._known_of(subject)
        if known is None:
            with self._readable():
                known = self._read_of((subject,)).get(subject)
            if known is None:
                return self._issued(tenant, subject)
            self._of_person.keep(subject, known)
        return known

    async def find_of(self, people: Mapping[str, str]) -> None:
        """Return once a key of each person is in memory, made where there is none.

        Args:
            people: tenants by subject.

        Raises:
            LogUnavailable: the file cannot be read.

        """
        unread = [one for one in people if self._known_of(one) is None]
        if not unread:
            return
        destroyed = self._destroyed
        with self._readable():
            found = await asyncio.to_thread(self._read_of, unread)
        if destroyed != self._destroyed:
            return  # `key_of` reads again
        for subject in unread:
            key = found.get(subject)
            if key is not None:
                self._of_person.keep(subject, key)
            elif self._known_of(subject) is None:
                with contextlib.suppress(ValidationError):  # who can have no key
                    self._issued(people[subject], subject)

    def _known_of(self, subject: str) -> DataKey | None:
        return self._of_person.find(subject) or self._unseen_of.get(subject)

    def _read_of(self, subjects: Iterable[str]) -> dict[str, DataKey]:
        found: dict[str, DataKey] = {}
        for subject in subjects:
            for one in self._store.keys_of(subject):
                key = self._opened(one)
                if key is not None:
                    found[subject] = one.key_id, key
                    break
        return found

    def _opens_newest(self) -> bool | None:
        """Whether the secrets open one of the newest keys; None where there are none."""
        newest = self._store.newest_keys(SAMPLE)
        return any(self._opened(one) is not None for one in newest) if newest else None

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
        for subject, key_id in (*taken.issued, *taken.destroyed):
            key = self._unseen.pop(key_id, None)
            if key is not None:
                self._unseen_of.pop(subject, None)
                self._unwrapped.keep(key_id, key)
                self._of_person.keep(subject, (key_id, key))
        self._brought += len(taken.issued)
        super()._take(taken)
        for subject, _ in taken.destroyed:
            self._of_person.pop(subject, None)

    def _forget(self) -> None:
        super()._forget()
        self._of_person.clear()
        self._unseen_of.clear()
        self._fits, self._looked_at = False, -1

    def close_texts(self, body: dict[str, Any], place: str, *, memory_only: bool = False) -> bool:
        """Encrypt the texts of an event's JSON, in place, for all people that it names.

        False where it names nobody, or has no texts in clear.

        Raises:
            KeysNotInMemory: `memory_only`, and keys are not there; the body has lost its texts.
            LogUnavailable: the file cannot be read.

        """
        people = () if FIELD in body else subjects_in(body)
        tenant = str(body.get("tenant", ""))

        def keys() -> list[DataKey]:
            known = [key for one in people if (key := self._known_of(one)) is not None]
            if len(known) == len(people):
                return known
            if memory_only:
                raise KeysNotInMemory(dict.fromkeys(people, tenant))
            return [self.key_of(tenant, one) for one in people]

        return bool(people) and encrypt_texts(body, place, keys)

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
