"""Personal texts: encryption by person of what the aggregator reads, writes and keeps in rows.

Rows are encrypted as they are stored, on the changelog and on disk alike, and hold texts in memory
only between two batches. What was counted stays in clear: an erased person's figures remain.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import orjson

from services.aggregator.codec import SourceRecord
from services.aggregator.rows import kind_of, row_key_of
from services.aggregator.writer import Write
from shared.contracts.subject import subjects_in
from shared.contracts.topics import TICKS
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
_TEXTS = ("messages", "completion", "value")
"""Fields that one at least of holds a text where an event has any."""
LONG_AGO_MS = 1
"""Time of what is stored: its keys are known (see `ready`), or destroyed."""


class PersonalTexts:
    """See the module."""

    def __init__(self, keys: UserKeyIssuer) -> None:
        self._keys = keys
        self._gone: set[str] = set()
        """Ids of destroyed keys in the rows that this turn's records find; memory has them never."""

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

    async def prefetch(
        self, records: Sequence[SourceRecord], row_of: Callable[[bytes], bytes | None]
    ) -> None:
        """Read together, in a thread, the keys that records and the rows that they find need.

        One by one each record would wait for a thread, and each row for the disk.

        Args:
            records: of one partition, as they are fetched.
            row_of: the row of a key as it is now, its texts encrypted or in clear.

        Raises:
            LogUnavailable: the keys cannot be read.
        """
        meetings: list[list[_Texts]] = []
        of_rows: set[str] = set()
        for record in records:
            body = _body_of(record)
            if body is None:
                continue
            meeting = [_texts_of(body)]
            key = row_key_of(record.partition, record.topic, body)
            row = row_of(key) if key is not None else None
            if key is not None and row is not None:
                found = [_texts_of(one) for one in _parsed(key, row).bodies()]
                of_rows.update(*(one.key_ids for one in found))
                meeting += found
            if any(one.there for one in meeting):
                meetings.append(meeting)
        self._gone = set()
        if not meetings:
            return
        wanted = {key_id for meeting in meetings for one in meeting for key_id in one.key_ids}
        newest_ms = max((record.timestamp for record in records), default=0) or LONG_AGO_MS
        keys = await self._keys.find(wanted - of_rows, written_ms=newest_ms)
        keys |= await self._keys.find(of_rows, written_ms=LONG_AGO_MS)
        self._gone = of_rows - keys.keys()
        people: dict[str, str] = {}
        for meeting in meetings:
            # Whose key is destroyed gets no other.
            readable = [one for one in meeting if keys.keys() >= one.key_ids]
            if any(one.there for one in readable):
                for one in readable:
                    people |= one.people
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
                decrypt_texts(body, place, self._key)

        return _with_bodies(key, stored, open_)

    def _key(self, key_id: str) -> bytes | None:
        return None if key_id in self._gone else self._keys.key(key_id)


class _Texts(NamedTuple):
    """What the texts of one event's JSON need."""

    there: bool
    """There are any, encrypted or in clear."""
    key_ids: set[str]
    """Of the keys under which they are encrypted."""
    people: dict[str, str]
    """Tenants by subject of those whose keys encrypt them."""


def _texts_of(body: dict[str, Any]) -> _Texts:
    if "subjects" in body:  # an erasure: these people get no key
        return _Texts(there=False, key_ids=set(), people={})
    key_ids: set[str] = set()
    with contextlib.suppress(TextsUnreadable):  # whoever opens it says what is wrong with it
        key_ids.update(key_ids_in(body) if FIELD in body else ())
    return _Texts(
        there=FIELD in body
        or any(isinstance(body.get(name), str | list | dict) for name in _TEXTS),
        key_ids=key_ids,
        people=dict.fromkeys(subjects_in(body), str(body.get("tenant", ""))),
    )


def _body_of(record: SourceRecord) -> dict[str, Any] | None:
    if record.value is None or record.topic == TICKS:
        return None
    with contextlib.suppress(orjson.JSONDecodeError):
        body: object = orjson.loads(record.value)
        if isinstance(body, dict):
            return cast("dict[str, Any]", body)
    return None


class _Parsed(NamedTuple):
    """A stored row, parsed as far as it holds events."""

    kind: str
    state: list[Any]
    interaction: dict[str, Any] | None

    def bodies(self) -> Iterator[dict[str, Any]]:
        """The JSON of each event in it."""
        yield from _trace_bodies(self.state) if self.kind == "trace" else _prompt_bodies(self.state)
        if self.interaction is not None:
            yield self.interaction


def _parsed(key: bytes, stored: bytes) -> _Parsed:
    head, _, interaction = stored.partition(b"\n")
    return _Parsed(
        kind_of(key), orjson.loads(head), orjson.loads(interaction) if interaction else None
    )


def _with_bodies(key: bytes, stored: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A stored row after a change of each event in it."""
    kind = kind_of(key)
    if kind not in {"trace", "prompt"}:
        return stored
    row = _parsed(key, stored)
    for body in row.bodies():
        change(body)
    interaction = orjson.dumps(row.interaction) if row.interaction is not None else b""
    return orjson.dumps(row.state) + (b"\n" if kind == "trace" else b"") + interaction


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
