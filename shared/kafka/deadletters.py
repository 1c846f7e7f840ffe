"""Dead-letter topic: unreadable records stored with the reason, and replayed on demand."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, cast

import orjson
from prometheus_client import CollectorRegistry, Counter
from pydantic import TypeAdapter, ValidationError

from shared.clock import Clock, SystemClock
from shared.contracts.conversation import compact_json
from shared.contracts.events.base import Identifier
from shared.contracts.events.dead_letters import (
    DeadLetter,
    DeadLetterReason,
    DeadLetterReplayed,
)
from shared.contracts.subject import subjects_in
from shared.contracts.topics import (
    DEAD_LETTERS,
    ERASURES,
    FEEDBACK,
    GENERATION_REQUESTS,
    INTERACTIONS,
    RATED,
    TRAINING_JOBS,
)
from shared.errors import RatchetError
from shared.kafka.audit import Requester, audit_action
from shared.kafka.envelope import Headers, UnreadableRecord, decode, models_by_type
from shared.kafka.log import EventLog, Position, Record, RecordRefused, records_to_end
from shared.redaction.detection import Redact, by_rules, redacted
from shared.withheld import UNCHECKED

MAX_BODY = 200_000
"""Characters of a body that are kept."""
MAX_HEADER = 1000
"""Characters of a header's name, of its value and of the key that are kept."""
MAX_HEADERS = 32_000
"""Characters of all headers that are kept."""
MAX_DETAIL = 1700
"""Characters of a detail; as many more as the event allows say what is not kept of the record."""
MAX_LETTER_BYTES = 900_000
"""A letter over this, for JSON escapes its text, keeps half as much of it; brokers refuse 1,048,588."""
READ_TIMEOUT_S = 60.0
REPLAYABLE = frozenset(
    (ERASURES, FEEDBACK, GENERATION_REQUESTS, INTERACTIONS, RATED, TRAINING_JOBS)
)
"""Topics whose readers write dead letters, beside the intakes. A letter names where its record came
from; followed blindly, one that was made up would put keys or decisions where they count."""
_INTAKE = re.compile(r"ratchet\.feedback-intake\.(?P<tenant>[A-Za-z0-9._-]{1,128})\.v1")
_OURS = re.compile(r"ce_|traceparent$|content-type$")
"""Headers that name what a record is: no detector may take one for a person."""
_TENANT: TypeAdapter[str] = TypeAdapter(Identifier)
REPLAY_OF = "ce_replayof"
"""Header of a replayed record: `partition/offset` at which it first could not be read."""
_PLACE = re.compile(r"(\d{1,9})/(\d{1,18})")
MAX_PEOPLE = 64
"""People of one letter under whose keys it is encrypted."""


class NotReplayable(RatchetError):
    """A dead letter says that it came from a topic that has none."""

    status = 422
    code = "not_replayable"
    title = "Not replayable"

    def __init__(self, topic: str) -> None:
        super().__init__(
            f"{topic}: has no dead letters, so nothing is put there; name the topic that the record came from"
        )


class DeadLetters:
    """Writes to the dead-letter topic. Texts go through `redact` first."""

    def __init__(
        self,
        log: EventLog,
        *,
        service: str,
        redact: Redact,
        metrics: CollectorRegistry,
        clock: Clock | None = None,
    ) -> None:
        self._log = log
        self._service = service
        self._redact = redact
        self._clock = clock or SystemClock()
        self._total = Counter(
            "ratchet_dead_letters_total",
            "Records that could not be read, by source topic and reason.",
            ("topic", "reason"),
            registry=metrics,
        )

    async def put(self, record: Record, reason: DeadLetterReason, detail: str) -> None:
        """Keep a record as a dead letter; the same record again, or replayed, gets the same id.

        What is too long is cut, so that any record's letter can be stored. Key, header values and
        body are redacted; redaction leaves identifiers as they are, so `replay` restores them. A
        body that a detector could not check is left out, and such a letter is not replayed.

        Raises:
            LogUnavailable: the brokers did not acknowledge it.

        """
        tenant, subjects = _people_in(record)
        partition, offset = _first_place(record)
        at = self._clock.now()

        def build(redact: Redact) -> DeadLetter:
            rules = by_rules(redact)
            headers, cuts = _headers(record.headers, redact)
            body = (record.value or b"").decode("utf-8", "replace")
            if len(record.key) > MAX_HEADER:
                cuts.append(f"{MAX_HEADER} of its key's {len(record.key)} characters")
            if len(body) > MAX_BODY:
                cuts.append(f"{MAX_BODY} of its body's {len(body)} characters")
            return DeadLetter(
                source_topic=record.topic,
                source_partition=partition,
                source_offset=offset,
                source_key=rules(record.key[:MAX_HEADER]),
                headers=headers,
                reason=reason,
                detail=_told(redact(detail)[:MAX_DETAIL], cuts),
                body=_body(body[:MAX_BODY], redact),
                service=self._service,
                tenant=tenant,
                subjects=subjects,
                at=at,
            )

        letter = await redacted(self._redact, build)
        if len(letter.to_json()) > MAX_LETTER_BYTES:
            kept = letter.body[: MAX_BODY // 2]
            letter = _cut(letter, f"{len(kept)} characters of its body", body=kept)
        place = f"{record.topic}/{partition}/{offset}"
        letter_id = str(uuid.uuid5(uuid.NAMESPACE_URL, place))
        try:
            await self._log.publish(
                DEAD_LETTERS, key=record.topic, event=letter, event_id=letter_id
            )
        except RecordRefused:
            # Brokers with a lower limit: a letter that only names the record is always accepted.
            bare = _cut(letter, "nothing of its headers and body", headers={}, body="")
            await self._log.publish(DEAD_LETTERS, key=record.topic, event=bare, event_id=letter_id)
        self._total.labels(record.topic, reason).inc()


class Replays:
    """What came of replays, by the place of the record; known once the letters are read to their end."""

    def __init__(self) -> None:
        self._at: dict[Position, datetime] = {}
        self._again: set[Position] = set()

    def of(self, letter: DeadLetter) -> tuple[datetime | None, bool]:
        """When a letter was last replayed, None if never; and whether it was unreadable again then."""
        place = place_of(letter)
        return self._at.get(place), place in self._again

    def shown(self, letter: DeadLetter) -> dict[str, Any]:
        """The same for JSON: `replayed_at` and `unreadable_again`."""
        at, again = self.of(letter)
        return {"replayed_at": at.isoformat() if at else None, "unreadable_again": again}

    def replayed(self, place: Position, at: datetime) -> None:
        """Take note of a replay."""
        self._at[place] = at
        self._again.discard(place)

    def repeated(self, place: Position) -> None:
        """Take note of one letter more of a record."""
        if place in self._at:
            self._again.add(place)


async def list_dead_letters(
    log: EventLog,
    *,
    source_topic: str = "",
    limit: int = 100,
    newest: int | None = None,
    replays: Replays | None = None,
) -> list[DeadLetter]:
    """All of `dead_letters_to_end` at once, up to a limit: the oldest.

    Raises:
        LogUnavailable: the topic could not be read to its end.

    """
    letters = dead_letters_to_end(log, source_topic=source_topic, newest=newest, replays=replays)
    async with aclosing(letters):
        found: list[DeadLetter] = []
        async for letter in letters:
            if len(found) < limit:
                found.append(letter)
        return found


async def dead_letters_to_end(
    log: EventLog,
    *,
    source_topic: str = "",
    newest: int | None = None,
    replays: Replays | None = None,
) -> AsyncGenerator[DeadLetter]:
    """The dead letters (of a topic), oldest first, each source record once; few in memory at a time.

    With `newest`, at most so many records of each partition are read. `replays` is filled meanwhile.

    Raises:
        LogUnavailable: the topic could not be read to its end.

    """
    by_type, seen = models_by_type(DeadLetter, DeadLetterReplayed), set[Position]()
    known = replays or Replays()
    records = records_to_end(log, DEAD_LETTERS, timeout_s=READ_TIMEOUT_S, newest=newest)
    async with aclosing(records):
        async for record in records:
            try:
                found = decode(record.headers, record.value, by_type)
            except UnreadableRecord:
                continue
            assert isinstance(found, DeadLetter | DeadLetterReplayed)
            place = place_of(found)
            if source_topic not in ("", found.source_topic):
                continue
            if isinstance(found, DeadLetterReplayed):
                known.replayed(place, found.at)
            elif place in seen:
                known.repeated(place)
            else:
                seen.add(place)
                yield found


async def replay(log: EventLog, letters: Iterable[DeadLetter]) -> int:
    """Append dead letters to the topics they came from; returns how many.

    Each is marked as replayed first. What was redacted stays redacted. Readers drop what they had
    already counted, by its identity. A record that is unreadable again is the same letter, so that
    replays do not multiply letters. Letters without a body, whose records were empty or could not
    be taken apart, are left out.

    Raises:
        LogUnavailable: the brokers did not acknowledge one; those before it are replayed.

    """
    count = 0
    for letter in letters:
        if not letter.body:
            continue
        mark = DeadLetterReplayed(
            source_topic=letter.source_topic,
            source_partition=letter.source_partition,
            source_offset=letter.source_offset,
            at=datetime.now(UTC),
        )
        await log.publish(
            DEAD_LETTERS, key=mark.source_topic, event=mark, event_id=str(uuid.uuid4())
        )
        place = f"{letter.source_partition}/{letter.source_offset}"
        named = {**letter.headers, REPLAY_OF: place}
        headers: Headers = tuple((k, v.encode()) for k, v in named.items())
        await log.append(
            letter.source_topic,
            key=letter.source_key,
            value=letter.body.encode(),
            headers=headers,
        )
        count += 1
    return count


async def replay_on_record(log: EventLog, letters: Sequence[DeadLetter], who: Requester) -> int:
    """Record who replays dead letters for each topic that they came from, then replay them.

    Raises:
        NotReplayable: one names a topic that has no dead letters; none is replayed.
        LogUnavailable: it was not recorded, and none is replayed; or see `replay`.

    """
    for letter in letters:
        if not is_replayable(letter.source_topic):
            raise NotReplayable(letter.source_topic)
    for topic in sorted({letter.source_topic for letter in letters if letter.body}):
        await audit_action(log, "letters.replayed", topic, who, at=datetime.now(UTC))
    return await replay(log, letters)


def _headers(given: Headers, redact: Redact) -> tuple[dict[str, str], list[str]]:
    """The headers that are kept, of one name the first, which readers take; and what is not."""
    rules = by_rules(redact)
    kept: dict[str, str] = {}
    left_out = shortened = size = 0
    for name, raw in given:
        value = raw.decode("utf-8", "replace")
        short, text = name[:MAX_HEADER], value[:MAX_HEADER]
        size += len(short) + len(text)
        if short in kept or size > MAX_HEADERS:
            left_out += 1
            continue
        shortened += len(name) > MAX_HEADER or len(value) > MAX_HEADER
        kept[short] = (rules if _OURS.match(name) else redact)(text)
    cuts: list[str] = []
    if left_out:
        cuts.append(f"{len(kept)} of its {len(given)} headers")
    if shortened:
        cuts.append(f"{MAX_HEADER} characters of {shortened} long headers")
    return kept, cuts


def _told(detail: str, cuts: Sequence[str]) -> str:
    """A detail that ends with what alone is kept of a record, where that is not all."""
    return f"{detail} (kept: {'; '.join(cuts)})" if cuts else detail


def _cut(letter: DeadLetter, kept: str, **fields: Any) -> DeadLetter:
    return letter.model_copy(update={**fields, "detail": _told(letter.detail, (kept,))})


def _body(value: str, redact: Redact) -> str:
    """A body by rules, then what a detector is asked: its texts where it is JSON, else the whole."""
    rules = by_rules(redact)
    body = rules(value)
    if redact is rules:
        return body
    try:
        checked = compact_json(_checked(json.loads(body), redact))
    except (ValueError, RecursionError):
        checked = redact(body)
    return "" if UNCHECKED in checked else checked


def _checked(value: object, redact: Redact) -> object:
    """JSON with its texts redacted, but for ids, by which a replay is known again."""
    match value:
        case str():
            return redact(value)
        case list():
            return [_checked(one, redact) for one in cast("list[object]", value)]
        case dict():
            return {
                name: one
                if name.endswith("_id") and isinstance(one, str)
                else _checked(one, redact)
                for name, one in cast("dict[str, object]", value).items()
            }
        case _:
            return value


def _first_place(record: Record) -> tuple[int, int]:
    """Partition and offset at which a record first could not be read: its own, unless it was replayed."""
    value = dict(record.headers).get(REPLAY_OF, b"").decode("ascii", "replace")
    if found := _PLACE.fullmatch(value):
        return int(found[1]), int(found[2])
    return record.partition, record.offset


def _people_in(record: Record) -> tuple[str, tuple[str, ...]]:
    """Tenant and subjects of a record's JSON; what is of another shape names nobody."""
    try:
        found: object = orjson.loads(record.value or b"null")
    except orjson.JSONDecodeError:
        return "", ()
    if not isinstance(found, dict):
        return "", ()
    body = cast("dict[str, Any]", found)
    intake = _INTAKE.fullmatch(record.topic)
    try:
        tenant = _TENANT.validate_python(intake["tenant"] if intake else body.get("tenant"))
    except ValidationError:
        return "", ()
    return tenant, tuple(subjects_in({**body, "tenant": tenant, "subjects": ()}))[:MAX_PEOPLE]


def is_replayable(topic: str) -> bool:
    """Whether a topic's readers write dead letters."""
    return topic in REPLAYABLE or _INTAKE.fullmatch(topic) is not None


def place_of(letter: DeadLetter | DeadLetterReplayed) -> Position:
    """Where the record is that could not be read."""
    return Position(letter.source_topic, letter.source_partition, letter.source_offset)
