"""Dead-letter topic: unreadable records stored with the reason, and replayed on demand."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter

from shared.clock import Clock, SystemClock
from shared.contracts.events.dead_letters import DeadLetter, DeadLetterReason
from shared.contracts.topics import DEAD_LETTERS
from shared.kafka.envelope import Headers, decode, models_by_type
from shared.kafka.log import EventLog, Record, RecordRefused, read_to_end

MAX_BODY = 200_000
"""Characters of a body that are kept."""
MAX_HEADERS = 16
"""Headers that are kept, with MAX_HEADER characters of each name and value; the key has as many."""
MAX_HEADER = 1000
MAX_LETTER_BYTES = 900_000
"""A letter over this, for JSON escapes its text, keeps half as much of it; brokers refuse 1,048,588."""
READ_TIMEOUT_S = 60.0


class DeadLetters:
    """Writes to the dead-letter topic. Bodies go through `redact` first."""

    def __init__(
        self,
        log: EventLog,
        *,
        service: str,
        redact: Callable[[str], str],
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
        """Keep a record as a dead letter; the same record again gets the same id.

        What is too long is cut, so that any record's letter can be stored. Key, header values and
        body are redacted; redaction leaves identifiers as they are, so `replay` restores them.

        Raises:
            LogUnavailable: the brokers did not acknowledge it.

        """
        body = (record.value or b"").decode("utf-8", "replace")[:MAX_BODY]
        headers = [
            (name[:MAX_HEADER], self._redact(value.decode("utf-8", "replace")[:MAX_HEADER]))
            for name, value in record.headers[:MAX_HEADERS]
        ]
        letter = DeadLetter(
            source_topic=record.topic,
            source_partition=record.partition,
            source_offset=record.offset,
            source_key=self._redact(record.key[:MAX_HEADER]),
            headers=dict(headers),
            reason=reason,
            detail=self._redact(detail)[:2000],
            body=self._redact(body),
            service=self._service,
            at=self._clock.now(),
        )
        if len(letter.to_json()) > MAX_LETTER_BYTES:
            letter = letter.model_copy(update={"body": letter.body[: MAX_BODY // 2]})
        place = f"{record.topic}/{record.partition}/{record.offset}"
        letter_id = str(uuid.uuid5(uuid.NAMESPACE_URL, place))
        try:
            await self._log.publish(
                DEAD_LETTERS, key=record.topic, event=letter, event_id=letter_id
            )
        except RecordRefused:
            # Brokers with a lower limit: a letter that only names the record is always accepted.
            bare = letter.model_copy(update={"headers": {}, "body": ""})
            await self._log.publish(DEAD_LETTERS, key=record.topic, event=bare, event_id=letter_id)
        self._total.labels(record.topic, reason).inc()


async def list_dead_letters(
    log: EventLog, *, source_topic: str = "", limit: int = 100
) -> list[DeadLetter]:
    """The oldest dead letters (of a topic), each source record once.

    Raises:
        LogUnavailable: the topic could not be read to its end.

    """
    found: dict[tuple[str, int, int], DeadLetter] = {}
    models = models_by_type(DeadLetter)
    for record in await read_to_end(log, DEAD_LETTERS, timeout_s=READ_TIMEOUT_S):
        letter = decode(record.headers, record.value, models)
        assert isinstance(letter, DeadLetter)
        if not source_topic or letter.source_topic == source_topic:
            place = (letter.source_topic, letter.source_partition, letter.source_offset)
            found.setdefault(place, letter)
    return list(found.values())[:limit]


async def replay(log: EventLog, *, source_topic: str = "", limit: int = 100) -> int:
    """Append dead letters to the topics they came from; returns how many.

    What was redacted stays redacted. Readers drop what they had already counted, by its identity.
    Letters without a body, whose records were empty or could not be taken apart, are left out.
    """
    found = await list_dead_letters(log, source_topic=source_topic, limit=sys.maxsize)
    letters = [letter for letter in found if letter.body][:limit]
    for letter in letters:
        headers: Headers = tuple((k, v.encode()) for k, v in letter.headers.items())
        await log.append(
            letter.source_topic,
            key=letter.source_key,
            value=letter.body.encode(),
            headers=headers,
        )
    return len(letters)
