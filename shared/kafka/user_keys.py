"""User keys: the key ring of people's texts, which follows `user-keys.v1` (envelope encryption).

A record is a data key wrapped by its tenant's key; its tombstone destroys it (crypto-shredding).
A writer issues a key, and waits for the brokers' acknowledgement, before it writes an event under it.
So whoever reads an event finds its keys by reading the topic to its end, or they are destroyed.
Keys are kept wrapped, in a file; those used last are kept unwrapped, in memory. `find` and `find_of`
read the file in a thread; `key` and `key_of` read it where they are called, if a key is not in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Collection, Generator, Iterable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from shared.kafka.log import EventLog, LogUnavailable
from shared.kafka.user_key_feed import UserKeyFeed
from shared.kafka.user_key_store import Taken, UserKeyStore, WrappedKey
from shared.text_encryption import TextsUnreadable, forget_ciphers, tenant_key, unwrap_bytes

UNWRAPPED = 8192
"""Keys that are kept unwrapped, about 0.5 kB each."""
CLOCK_SKEW_S = 60.0
"""How much the clocks of two machines may differ."""
UNREADABLE = (
    "RATCHET_TEXT_KEY_FILE: another secret wrapped the keys of these texts, or their records were "
    "changed; use that secret, or add it on a further line of the file"
)

Value = TypeVar("Value")


class TextsLocked(LogUnavailable):
    """Texts are encrypted, and this process has no secret for them; waiting does not help."""


class Recent(OrderedDict[str, Value], Generic[Value]):
    """The values that were used last, UNWRAPPED at most."""

    def find(self, name: str) -> Value | None:
        """The value; None where it is not among them."""
        found = self.get(name)
        if found is not None:
            self.move_to_end(name)
        return found

    def keep(self, name: str, value: Value) -> None:
        """Add a value in place of the one that was used longest ago."""
        self[name] = value
        if len(self) > UNWRAPPED:
            self.popitem(last=False)


class UserKeys:
    """Keys by id for whoever reads texts. Follows the topic from `follow`, or once it is asked."""

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
        self._unwrapped = Recent[bytes]()
        """By key id."""
        self._unseen: dict[str, bytes] = {}
        """By key id, those of an issuer's that the topic has not brought yet."""
        self._destroyed = 0
        """Times that keys were destroyed: what a thread read before such a time is not kept."""

    def key(self, key_id: str) -> bytes | None:
        """The key; None where it is destroyed, once `find` has been asked for it.

        Raises:
            TextsLocked: none of the secrets wrapped it.
            LogUnavailable: the file cannot be read.

        """
        known = self._known(key_id)
        if known is not None:
            return known
        with self._readable():
            found = self._read((key_id,))
        self._keep(found)
        if None in found.values():
            raise TextsLocked(UNREADABLE)
        return found.get(key_id)

    async def find(self, key_ids: Collection[str], *, written_ms: int = 0) -> dict[str, bytes]:
        """The keys by id, without those that are destroyed.

        Args:
            key_ids: the keys.
            written_ms: when the brokers got what is encrypted with them; 0 is unknown.

        Raises:
            LogUnavailable: the topic's end was not reached in time, or the file cannot be read.
            TextsLocked: none of the secrets wrapped a key.

        """
        whole = self._feed.whole
        if whole:
            known = self._in_memory(key_ids)
            if len(known) == len(key_ids):
                return known
        else:  # the file may hold what was destroyed since
            await self.refresh()
        read_to_s = time.time() - self._feed.age_s()
        found = await self._load(key_ids)
        if (
            whole
            and not all(found.get(key_id) for key_id in key_ids)
            and (not written_ms or written_ms / 1000 + CLOCK_SKEW_S > read_to_s)
        ):
            await self.refresh()
            found = await self._load(key_ids)
        if None in found.values():
            raise TextsLocked(UNREADABLE)
        return {key_id: key for key_id, key in found.items() if key is not None}

    def follow(self) -> None:
        """Begin to read the topic before anybody asks; a second call does nothing."""
        self._feed.start()

    def unread(self) -> str:
        """Why the topic was not read to its end since the start; empty where it was."""
        return self._feed.unread()

    async def refresh(self) -> None:
        """Return once all is known that the topic has now.

        Raises:
            LogUnavailable: nothing came for WHOLE_TIMEOUT_S, and the end was not reached.

        """
        await self._feed.refresh()

    async def close(self) -> None:
        """Stop following."""
        await self._feed.close()

    def _known(self, key_id: str) -> bytes | None:
        return self._unwrapped.find(key_id) or self._unseen.get(key_id)

    def _in_memory(self, key_ids: Iterable[str]) -> dict[str, bytes]:
        return {one: key for one in key_ids if (key := self._known(one)) is not None}

    async def _load(self, key_ids: Iterable[str]) -> dict[str, bytes | None]:
        """Keys by id, without those that are destroyed; None where no secret opens one."""
        known = self._in_memory(key_ids)
        unread = [one for one in key_ids if one not in known]
        if not unread:
            return {**known}
        destroyed = self._destroyed
        with self._readable():
            found = await asyncio.to_thread(self._read, unread)
        if destroyed == self._destroyed:
            self._keep(found)
        return {**known, **found}

    def _read(self, key_ids: Iterable[str]) -> dict[str, bytes | None]:
        stored = (self._store.key(one) for one in key_ids)
        return {one.key_id: self._opened(one) for one in stored if one is not None}

    def _keep(self, found: Mapping[str, bytes | None]) -> None:
        for key_id, key in found.items():
            if key is not None:
                self._unwrapped.keep(key_id, key)

    def _opened(self, stored: WrappedKey) -> bytes | None:
        """A stored key, unwrapped; None where no secret does that."""
        for secret in self._secrets:
            with contextlib.suppress(TextsUnreadable):
                return unwrap_bytes(tenant_key(secret, stored.tenant), stored.wrapped, stored.name)
        return None

    @contextlib.contextmanager
    def _readable(self) -> Generator[None]:
        """Around a reading of the file.

        Raises:
            LogUnavailable: it cannot be read.

        """
        try:
            yield
        except sqlite3.Error as error:
            self._feed.damaged(error)
            raise LogUnavailable(f"the file of user keys cannot be read: {error}") from error

    def _take(self, taken: Taken) -> None:
        """Follow what the store took."""
        for _, key_id in taken.destroyed:
            self._unwrapped.pop(key_id, None)
        if taken.destroyed:
            self._destroyed += 1
            forget_ciphers()

    def _forget(self) -> None:
        """Forget the keys of a topic that was deleted and made anew: nobody else can read them."""
        self._destroyed += 1
        self._unwrapped.clear()
        self._unseen.clear()
        forget_ciphers()
