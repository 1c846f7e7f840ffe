"""Texts of one event: encrypted by person in its JSON, and opened again."""

from __future__ import annotations

from typing import Any, cast

import orjson
import structlog
from pydantic import ValidationError

from shared.contracts.topics import (
    ANNOTATIONS,
    DEAD_LETTERS,
    EXAMPLES,
    FEEDBACK,
    GENERATION_REQUESTS,
    GENERATION_RESULTS,
    INTERACTIONS,
    PREFERENCES,
    RATED,
)
from shared.kafka.envelope import Headers, header
from shared.kafka.user_key_issuer import UserKeyIssuer
from shared.kafka.user_keys import UserKeys
from shared.text_encryption import TextsUnreadable, decrypt_texts, key_ids_in

log = structlog.get_logger(__name__)

ENCRYPTED_TOPICS = frozenset(
    (
        ANNOTATIONS, DEAD_LETTERS, EXAMPLES, FEEDBACK, GENERATION_REQUESTS, GENERATION_RESULTS,
        INTERACTIONS, PREFERENCES, RATED,
    )
)  # fmt: skip


async def opened(keys: UserKeys, value: bytes, headers: Headers, written_ms: int) -> bytes:
    """An event's JSON with its texts; with empty texts where a key is destroyed.

    What was changed or cut, as dead letters of long records are, comes back as it is: whoever reads
    it says what is wrong with it.

    Raises:
        LogUnavailable: the keys cannot be read now.

    """
    try:
        body: Any = orjson.loads(value)
        found = await keys.find(key_ids_in(body), written_ms=written_ms)
        decrypt_texts(body, _place_of(headers), found.get)
    except (orjson.JSONDecodeError, TextsUnreadable) as error:
        log.warning("texts.unreadable", place=_place_of(headers), error=str(error))
        return value
    return orjson.dumps(body)


def encrypted(
    keys: UserKeyIssuer, value: bytes, headers: Headers, *, memory_only: bool = False
) -> bytes:
    """An event's JSON with its texts encrypted for all people that it names; as it is for nobody.

    What never was an event, as the record of a dead letter that is replayed, goes as it is, too.

    Raises:
        KeysNotInMemory: `memory_only`, and keys are not there.
        LogUnavailable: the keys cannot be read now.

    """
    try:
        body: Any = orjson.loads(value)
        closes = isinstance(body, dict) and keys.close_texts(
            cast("dict[str, Any]", body), _place_of(headers), memory_only=memory_only
        )
    except (orjson.JSONDecodeError, ValidationError):  # no JSON, or whom it names can have no key
        return value
    return orjson.dumps(body) if closes else value


def _place_of(headers: Headers) -> str:
    """What an event's ciphertext is bound to: its type and id."""
    return f"{header(headers, 'ce_type')}\0{header(headers, 'ce_id')}"
