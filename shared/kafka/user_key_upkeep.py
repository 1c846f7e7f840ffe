"""Upkeep of user keys: destroying a person's keys, and wrapping all keys by a new secret."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from shared.contracts.events.user_keys import UserKeyIssued
from shared.contracts.topics import USER_KEYS
from shared.kafka.envelope import UnreadableRecord, decode, models_by_type
from shared.kafka.log import EventLog, NewRecord, Record, read_to_end
from shared.text_encryption import TextsUnreadable, tenant_key, unwrap_key, wrap_key

ROLL_S = 6.0
"""A little more than `segment.ms` of the topic."""
READ_TIMEOUT_S = 600.0
"""Longest time for reading the topic once: a million keys take half a minute."""
BATCH = 1000
MODELS = models_by_type(UserKeyIssued)


@dataclass(frozen=True)
class Rewrapping:
    """How many keys were wrapped anew, and how many no secret opens."""

    rewrapped: int
    unreadable: int


async def destroy_keys(event_log: EventLog, subjects: Collection[str]) -> int:
    """Destroy all keys of some people; returns how many there were.

    Raises:
        LogUnavailable: it is not done; ask again.

    """
    found: set[str] = set()  # destroyed ones too: this may be the second try

    def note(record: Record) -> bool:
        if record.key.partition(":")[0] in subjects:
            found.add(record.key)
        return False

    await read_to_end(event_log, USER_KEYS, timeout_s=READ_TIMEOUT_S, keep=note)
    await _bury(event_log, found)
    return len(found)


async def _bury(event_log: EventLog, names: Collection[str]) -> None:
    """Write the tombstones of keys.

    Brokers compact no active segment, so a second tombstone after `ROLL_S` closes the one that holds
    the first (`segment.ms` of the topic); the cleaner then takes the keys from the disk.
    """
    tombstones = [NewRecord(USER_KEYS, name, None) for name in sorted(names)]
    if tombstones:
        await event_log.append_many(tombstones)
        await asyncio.sleep(ROLL_S)
        await event_log.append_many(tombstones)


async def rewrap_keys(event_log: EventLog, secrets: Sequence[bytes]) -> Rewrapping:
    """Wrap every key by the first secret that another of them wrapped; may run again at any time.

    A key that was destroyed meanwhile is destroyed again, by a later run if this one is cut off: its
    new record came after the tombstone.

    Raises:
        LogUnavailable: some are not rewrapped; ask again.

    """
    stale: dict[str, Record] = {}
    unreadable: set[str] = set()

    def note(record: Record) -> bool:
        stale.pop(record.key, None)
        unreadable.discard(record.key)
        try:
            if record.value is not None and _unwrapped(secrets, record)[2]:
                stale[record.key] = record
        except (UnreadableRecord, TextsUnreadable):
            unreadable.add(record.key)
        return False

    await read_to_end(event_log, USER_KEYS, timeout_s=READ_TIMEOUT_S, keep=note)
    renewed = [_renewed(record, secrets) for record in stale.values()]
    for start in range(0, len(renewed), BATCH):
        await event_log.append_many(renewed[start : start + BATCH])
    await _bury(event_log, await _revived(event_log))
    return Rewrapping(len(renewed), len(unreadable))


def _renewed(record: Record, secrets: Sequence[bytes]) -> NewRecord:
    issued, key, _ = _unwrapped(secrets, record)
    wrapped = wrap_key(tenant_key(secrets[0], issued.tenant), key, record.key)
    value = issued.model_copy(update={"wrapped": wrapped}).to_json()
    return NewRecord(USER_KEYS, record.key, value, record.headers)


async def _revived(event_log: EventLog) -> set[str]:
    """Names of the keys that have a record behind their tombstone."""
    dead: set[str] = set()
    revived: set[str] = set()

    def note(record: Record) -> bool:
        if record.value is None:
            dead.add(record.key)
            revived.discard(record.key)
        elif record.key in dead:
            revived.add(record.key)
        return False

    await read_to_end(event_log, USER_KEYS, timeout_s=READ_TIMEOUT_S, keep=note)
    return revived


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
