"""Personal texts: encryption by person of what the aggregator reads, writes and keeps in rows.

Rows are encrypted as they are stored, on the changelog and on disk alike, and hold texts in memory
only between two batches. What was counted stays in clear: an erased person's figures remain.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import orjson

from services.aggregator.codec import SourceRecord
from services.aggregator.rows import kind_of
from services.aggregator.writer import Write
from shared.contracts.subject import subjects_in
from shared.kafka.envelope import headers_of
from shared.kafka.event_texts import ENCRYPTED_TOPICS, encrypted, opened
from shared.kafka.user_key_issuer import UserKeyIssuer
from shared.text_encryption import (
    FIELD,
    TextsUnreadable,
    decrypt_texts,
    is_encrypted,
    key_ids_in,
)

BODY, RIVAL, RIVAL_BODY = 3, 16, 3
"""Places in a stored entry, behind its name (see rows.FeedbackEntry)."""
LONG_AGO_MS = 1
"""A key that is missing is looked for on the topic where its record is opened, not before."""


class PersonalTexts:
    """See the module."""

    def __init__(self, keys: UserKeyIssuer) -> None:
        self._keys = keys

    async def ready(self) -> None:
        """Return once every key is known under which a row may be stored now.

        Raises:
            LogUnavailable: the keys cannot be read.
        """
        await self._keys.ready()
        await self._keys.refresh()

    async def acknowledged(self) -> None:
        """Return once the brokers have all keys under which something was encrypted.

        Raises:
            LogUnavailable: they did not acknowledge in time.
        """
        await self._keys.acknowledged()

    async def close(self) -> None:
        """Stop following the keys."""
        await self._keys.close()

    async def prefetch(self, records: Sequence[SourceRecord]) -> None:
        """Read together, in a thread, the keys that records and their rows need.

        One by one each record would wait for a thread, and each row for the disk.

        Raises:
            LogUnavailable: the keys cannot be read.
        """
        bodies: list[tuple[dict[str, Any], list[str]]] = []
        for value in (record.value for record in records):
            # Whoever opens it says what is wrong with it.
            with contextlib.suppress(orjson.JSONDecodeError, TextsUnreadable):
                if value is not None and is_encrypted(value):
                    body = orjson.loads(value)
                    bodies.append((body, key_ids_in(body)))
        if not bodies:
            return
        key_ids = {key_id for _, ids in bodies for key_id in ids}
        found = await self._keys.find(key_ids, written_ms=LONG_AGO_MS)
        people = {
            subject: str(body.get("tenant", ""))
            for body, ids in bodies
            if found.keys() >= set(ids)  # whose key is destroyed gets no other
            for subject in subjects_in(body)
        }
        await self._keys.find_of(people)

    async def opened(self, record: SourceRecord) -> bytes | None:
        """A record's value with its texts.

        Raises:
            LogUnavailable: the keys cannot be read.
        """
        value = record.value
        if value is None or not is_encrypted(value):
            return value
        return await opened(self._keys, value, headers_of(record.headers), record.timestamp)

    def encrypted(self, write: Write) -> Write:
        """A record to write, with its texts encrypted where its topic's are."""
        if write.topic not in ENCRYPTED_TOPICS or write.value is None:
            return write
        return write._replace(value=encrypted(self._keys, write.value, write.headers))

    def close_row(self, key: bytes, stored: bytes) -> bytes:
        """A row as it is stored, with its texts encrypted for the people whom each part names."""
        place = key.decode()
        return _with_bodies(key, stored, lambda body: self._keys.close_texts(body, place))

    def open_row(self, key: bytes, stored: bytes) -> bytes:
        """The row that `close_row` closed; parts whose key is destroyed stay without texts.

        Raises:
            LogUnavailable: the secret is not the one that wrapped a part's key.
        """
        if not is_encrypted(stored):
            return stored
        place = key.decode()

        def open_(body: dict[str, Any]) -> None:
            if FIELD in body:
                decrypt_texts(body, place, self._keys.key)

        return _with_bodies(key, stored, open_)


def _with_bodies(key: bytes, stored: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A stored row after a change of each event in it."""
    kind = kind_of(key)
    if kind not in {"trace", "prompt"}:
        return stored
    head, newline, interaction = stored.partition(b"\n")
    state = orjson.loads(head)
    for body in _trace_bodies(state) if kind == "trace" else _prompt_bodies(state):
        change(body)
    if interaction:
        asked = orjson.loads(interaction)
        change(asked)
        interaction = orjson.dumps(asked)
    return orjson.dumps(state) + newline + interaction


def _trace_bodies(state: list[Any]) -> Iterator[dict[str, Any]]:
    for entry in cast("list[list[Any]]", state[0]):
        if entry[BODY]:
            yield entry[BODY]
        if len(entry) > RIVAL and entry[RIVAL] and entry[RIVAL][RIVAL_BODY]:
            yield entry[RIVAL][RIVAL_BODY]


def _prompt_bodies(state: list[Any]) -> Iterator[dict[str, Any]]:
    for answer in cast("dict[str, dict[str, Any]]", state[0]).values():
        if "event" in answer:
            yield answer["event"]
