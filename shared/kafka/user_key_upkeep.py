"""Upkeep of user keys: destroying a person's keys, and wrapping all keys by a new secret."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from shared.contracts.events.user_keys import UserKeyIssued
from shared.contracts.topics import USER_KEYS
from shared.kafka.envelope import UnreadableRecord, decode, models_by_type
from shared.kafka.log import EventLog, LogUnavailable, NewRecord, Record, read_to_end
from shared.text_encryption import TextsUnreadable, tenant_key, unwrap_key, wrap_key

ROLL_S = 6.0
"""A little more than `segment.ms` of the topic."""
READ_TIMEOUT_S = 600.0
"""Longest time for reading the topic once: a million keys take half a minute."""
BATCH = 1000
CACHE_KIB = 8192
"""Memory for pages of the file of tombstones."""
HELD = 100_000
"""Keys in memory at once, about: where more are to be wrapped anew, the topic is read in parts."""
MODELS = models_by_type(UserKeyIssued)


@dataclass(frozen=True)
class Rewrapping:
    """How many keys were wrapped anew, and how many no secret opens."""

    rewrapped: int
    unreadable: int


@dataclass(eq=False)
class _KeyReading:
    """One reading of the topic for whoever asked before it began."""

    subjects: set[str] = field(default_factory=set[str])
    names: set[str] | None = None
    """Of their keys, once it was read; destroyed ones too: this may be the second try."""
    failure: LogUnavailable | None = None


class UserKeyDestroyer:
    """Destroys people's keys. The topic is read once at a time, for all who wait for it together."""

    def __init__(self, event_log: EventLog) -> None:
        self._log = event_log
        self._turn = asyncio.Lock()
        self._next: _KeyReading | None = None

    async def destroy(self, subjects: Collection[str]) -> int:
        """Destroy all keys of some people; returns how many there were.

        Raises:
            LogUnavailable: it is not done; ask again.

        """
        reading = self._next = self._next or _KeyReading()
        reading.subjects.update(subjects)
        async with self._turn:
            if self._next is reading:
                self._next = None
            if reading.failure is not None:
                raise LogUnavailable(str(reading.failure))
            if reading.names is None:
                await self._read(reading)
        found = {name for name in reading.names or () if _subject(name) in subjects}
        await _bury(self._log, partial(_batches, sorted(found)))
        return len(found)

    async def _read(self, reading: _KeyReading) -> None:
        found: set[str] = set()

        def note(record: Record) -> bool:
            if _subject(record.key) in reading.subjects:
                found.add(record.key)
            return False

        try:
            await read_to_end(self._log, USER_KEYS, timeout_s=READ_TIMEOUT_S, keep=note)
        except LogUnavailable as error:
            reading.failure = error
            raise
        reading.names = found


def _subject(name: str) -> str:
    return name.partition(":")[0]


def _batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[start : start + BATCH] for start in range(0, len(names), BATCH))


async def _bury(event_log: EventLog, batches: Callable[[], Iterator[Sequence[str]]]) -> None:
    """Write the tombstones of keys, whose names `batches` gives each time anew.

    Brokers compact no active segment, so a second tombstone after `ROLL_S` closes the one that holds
    the first (`segment.ms` of the topic); the cleaner then takes the keys from the disk.
    """
    for closing in (False, True):
        for place, names in enumerate(batches()):
            if closing and not place:
                await asyncio.sleep(ROLL_S)
            await event_log.append_many([NewRecord(USER_KEYS, name, None) for name in names])


async def rewrap_keys(event_log: EventLog, secrets: Sequence[bytes]) -> Rewrapping:
    """Wrap every key by the first secret that another of them wrapped; may run again at any time.

    A key that was destroyed meanwhile is destroyed again, by a later run if this one is cut off: its
    new record came after the tombstone.

    Raises:
        LogUnavailable: some are not rewrapped; ask again.

    """
    rewrapped = unreadable = part = 0
    parts = 1
    while part < parts:
        found = await _key_part(event_log, secrets, part, parts)
        stale, parts = list(found.stale.values()), found.parts
        for start in range(0, len(stale), BATCH):
            records = stale[start : start + BATCH]
            await event_log.append_many([_renewed(record, secrets) for record in records])
        rewrapped, unreadable = rewrapped + len(stale), unreadable + len(found.unreadable)
        part += 1
    try:
        with contextlib.closing(_Tombstones()) as tombstones:
            await read_to_end(event_log, USER_KEYS, timeout_s=READ_TIMEOUT_S, keep=tombstones.note)
            await _bury(event_log, tombstones.revived)
    except sqlite3.Error as error:
        raise LogUnavailable(
            f"the names of destroyed keys find no room in the folder of temporary files: {error}; "
            "free some, and ask again"
        ) from error
    return Rewrapping(rewrapped, unreadable)


class _KeyPart:
    """The keys of one part, by their names' checksums, that are to be wrapped anew."""

    def __init__(self, part: int, parts: int) -> None:
        self.part, self.parts = part, parts
        self.stale: dict[str, Record] = {}
        self.unreadable: set[str] = set()
        """Names of those that no secret opens."""

    def has(self, name: str) -> bool:
        """Whether a key is of this part."""
        return zlib.crc32(name.encode()) % self.parts == self.part

    def halve(self) -> None:
        """Make twice as many parts, and keep what is of the first of them."""
        self.parts *= 2
        self.stale = {name: one for name, one in self.stale.items() if self.has(name)}
        self.unreadable = set(filter(self.has, self.unreadable))


async def _key_part(
    event_log: EventLog, secrets: Sequence[bytes], part: int, parts: int
) -> _KeyPart:
    """A part of the topic's keys; the first part has as few as HELD, by making more parts."""
    found = _KeyPart(part, parts)

    def note(record: Record) -> bool:
        if not found.has(record.key):
            return False
        found.stale.pop(record.key, None)
        found.unreadable.discard(record.key)
        try:
            if record.value is not None and _unwrapped(secrets, record)[2]:
                found.stale[record.key] = record
        except (UnreadableRecord, TextsUnreadable):
            found.unreadable.add(record.key)
        if part == 0 and len(found.stale) + len(found.unreadable) > HELD:
            found.halve()
        return False

    await read_to_end(event_log, USER_KEYS, timeout_s=READ_TIMEOUT_S, keep=note)
    return found


def _renewed(record: Record, secrets: Sequence[bytes]) -> NewRecord:
    issued, key, _ = _unwrapped(secrets, record)
    wrapped = wrap_key(tenant_key(secrets[0], issued.tenant), key, record.key)
    value = issued.model_copy(update={"wrapped": wrapped}).to_json()
    return NewRecord(USER_KEYS, record.key, value, record.headers)


class _Tombstones:
    """Which keys had a tombstone, and which of them a record behind it.

    They are in an SQLite file without a name, which ends with its connection: there may be millions.
    """

    def __init__(self) -> None:
        self._file = sqlite3.connect("", isolation_level=None)
        self._file.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._file.execute("PRAGMA journal_mode = OFF")
        self._file.execute(
            "CREATE TABLE names (name TEXT PRIMARY KEY, revived INTEGER NOT NULL) WITHOUT ROWID"
        )
        self._file.execute("BEGIN")

    def note(self, record: Record) -> bool:
        """Follow a record of the topic; False, for none is to be kept."""
        statement = (
            "INSERT OR REPLACE INTO names VALUES (?, 0)"
            if record.value is None
            else "UPDATE names SET revived = 1 WHERE name = ?"
        )
        self._file.execute(statement, (record.key,))
        return False

    def revived(self) -> Iterator[Sequence[str]]:
        """Names of the keys that have a record behind their tombstone, BATCH at a time."""
        found = self._file.execute("SELECT name FROM names WHERE revived ORDER BY name")
        while names := [str(name) for (name,) in found.fetchmany(BATCH)]:
            yield names

    def close(self) -> None:
        """End the file."""
        self._file.close()


def _unwrapped(
    secrets_of_file: Sequence[bytes], record: Record
) -> tuple[UserKeyIssued, bytes, int]:
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
