"""User key records: the names and contents of `user-keys.v1`, as numbers and bytes."""

from __future__ import annotations

import base64
import binascii
from typing import Any, NamedTuple

import orjson
import structlog

from shared.kafka.log import Record

log = structlog.get_logger(__name__)

SUBJECT_BYTES, ID_BYTES, WRAPPED_BYTES = 32, 8, 60


class KeyName(NamedTuple):
    """The name of a key: whose it is, and which, in hex and as they are stored."""

    subject: str
    key_id: str
    subject_bytes: bytes
    number: int
    """The id."""
    person: int
    """The subject's first bytes."""


def name_of(key: str) -> KeyName | None:
    """Subject and key id of a record; None where the key is not of that form."""
    subject, _, key_id = key.partition(":")
    try:
        subject_bytes, id_bytes = bytes.fromhex(subject), bytes.fromhex(key_id)
    except ValueError:
        return None
    if (len(subject_bytes), len(id_bytes)) != (SUBJECT_BYTES, ID_BYTES):
        return None
    person = subject_bytes[:ID_BYTES]
    return KeyName(subject, key_id, subject_bytes, _signed(id_bytes), _signed(person))


def number_of(hexadecimal: str) -> int | None:
    """ID_BYTES in hex as the number that is stored; None where it is something else."""
    try:
        digits = bytes.fromhex(hexadecimal)
    except ValueError:
        return None
    return _signed(digits) if len(digits) == ID_BYTES else None


def _signed(digits: bytes) -> int:
    return int.from_bytes(digits, "big", signed=True)


def content_of(record: Record) -> tuple[str, bytes]:
    """Tenant and wrapped key of a record. Its JSON alone is read: a model takes ten times as long."""
    try:
        body: dict[str, Any] = orjson.loads(record.value or b"")
        tenant, wrapped = str(body["tenant"]), base64.b64decode(body["wrapped"], validate=True)
        if len(wrapped) == WRAPPED_BYTES:
            return tenant, wrapped
        error = f"its key has {len(wrapped)} bytes"
    except (orjson.JSONDecodeError, LookupError, TypeError, ValueError, binascii.Error) as found:
        error = f"{type(found).__name__}: {found}"
    log.warning("user_keys.unreadable", offset=record.offset, error=error)
    return "", b""
