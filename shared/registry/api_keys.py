"""API keys on their topic: issue, rotate and revoke, each on record. Only a key's hash is kept."""

from __future__ import annotations

import secrets
from contextlib import aclosing
from datetime import datetime
from typing import Any, NamedTuple

from shared.contracts.events.api_keys import ApiKeyIssued
from shared.contracts.topics import API_KEYS
from shared.errors import RatchetError
from shared.kafka.audit import Requester, audit_action
from shared.kafka.log import EventLog, records_to_end
from shared.keys import hash_key, new_key

READ_TIMEOUT_S = 60.0


class UnknownKey(RatchetError):
    """There is no such key."""

    status = 404
    code = "not_found"
    title = "No such key"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"there is no key {key_id}; see ratchet keys list")


class NewKey(NamedTuple):
    """A key that was just issued; the secret is nowhere else."""

    secret: str
    issued: ApiKeyIssued


def make_key(fields: dict[str, Any], now: datetime) -> NewKey:
    """A new key with these fields of ApiKeyIssued.

    Raises:
        pydantic.ValidationError: a field breaks a rule.

    """
    secret = new_key()
    own = {
        "key_id": f"key-{secrets.token_hex(6)}",
        "sha256": hash_key(secret),
        "issued_at": now,
    }
    return NewKey(secret, ApiKeyIssued.model_validate(fields | own))


async def read_keys(log: EventLog) -> dict[str, ApiKeyIssued]:
    """All keys that were not revoked, by id; expired ones too.

    Raises:
        LogUnavailable: the topic's end was not reached in time.

    """
    found: dict[str, ApiKeyIssued] = {}
    records = records_to_end(log, API_KEYS, timeout_s=READ_TIMEOUT_S)
    async with aclosing(records):
        async for record in records:
            if record.value is None:
                found.pop(record.key, None)
            else:
                found[record.key] = ApiKeyIssued.model_validate_json(record.value)
    return found


async def known_key(log: EventLog, key_id: str) -> ApiKeyIssued:
    """One key.

    Raises:
        UnknownKey: there is none.
        LogUnavailable: the topic's end was not reached in time.

    """
    found = (await read_keys(log)).get(key_id)
    if found is None:
        raise UnknownKey(key_id)
    return found


async def issue_key(log: EventLog, new: NewKey, who: Requester) -> None:
    """Put a new key on the topic, and who did it on the audit topic.

    Raises:
        LogUnavailable: the brokers did not acknowledge it.

    """
    await _publish(log, new.issued)
    await _audit(log, "key.issued", new.issued, who, new.issued.issued_at)


async def rotate_key(
    log: EventLog,
    old: ApiKeyIssued,
    who: Requester,
    *,
    now: datetime,
    old_expires_at: datetime,
    expires_at: datetime | None = None,
) -> NewKey:
    """Issue a key like `old`, and let `old` expire at `old_expires_at`, or earlier as it would.

    Raises:
        LogUnavailable: the brokers did not acknowledge it.

    """
    end = min(old_expires_at, old.expires_at) if old.expires_at else old_expires_at
    fields = old.model_dump(exclude={"key_id", "sha256", "issued_at"})
    new = make_key(fields | {"expires_at": expires_at}, now)
    # The new one first: cut short here, both are valid and the old one can be rotated again.
    await _publish(log, new.issued)
    await _publish(log, old.model_copy(update={"expires_at": end}))
    replaced, replaces = f"replaced by {new.issued.key_id}", f"replaces {old.key_id}"
    await _audit(log, "key.rotated", old, who._replace(reason=who.reason or replaced), now)
    await _audit(log, "key.issued", new.issued, who._replace(reason=who.reason or replaces), now)
    return new


async def revoke_key(log: EventLog, key_id: str, who: Requester, *, now: datetime) -> None:
    """Revoke a key.

    Raises:
        UnknownKey: there is none.
        LogUnavailable: the brokers did not acknowledge it.

    """
    revoked = await known_key(log, key_id)
    await log.append(API_KEYS, key=key_id, value=None)
    await _audit(log, "key.revoked", revoked, who, now)


async def _publish(log: EventLog, issued: ApiKeyIssued) -> None:
    await log.publish(API_KEYS, key=issued.key_id, event=issued, event_id=issued.key_id)


async def _audit(
    log: EventLog, action: str, key: ApiKeyIssued, who: Requester, at: datetime
) -> None:
    await audit_action(log, action, key.key_id, who, tenant=key.tenant, at=at)
