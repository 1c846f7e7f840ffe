"""Eraser: sweeps the topics for a requested erasure and records what it took away.

Each step may run again: traces are erased idempotently, a retraction repeated is the same, and an
erasure that has its completion on record is passed over. So a killed sweep starts again from its
request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping

import structlog

from services.feedback.erasure.people import (
    Trace,
    body_of,
    is_about,
    is_asked_by,
    traces_in,
    traces_of,
    without_person,
)
from services.feedback.publisher import SOURCE
from shared.clock import Clock
from shared.contracts.events.base import Event
from shared.contracts.events.erasures import ErasureCompleted, ErasureRequested, TraceErased
from shared.contracts.events.preferences import ERASED, PreferenceRetracted
from shared.contracts.events.quality import ExampleJoined
from shared.contracts.topics import (
    ANNOTATIONS,
    ERASURES,
    EXAMPLES,
    FEEDBACK,
    INTERACTIONS,
    PREFERENCES,
)
from shared.kafka.envelope import UnreadableRecord, decode, models_by_type
from shared.kafka.log import (
    EventLog,
    LogUnavailable,
    NewRecord,
    Record,
    event_record,
    read_to_end,
)
from shared.kafka.user_key_upkeep import UserKeyDestroyer
from shared.media_store import MediaStore, MediaUnavailable

log = structlog.get_logger(__name__)

GROUP = "ratchet.feedback-erasures"
ERASURE_MODELS = models_by_type(ErasureRequested, ErasureCompleted)
EXAMPLE_MODELS = models_by_type(ExampleJoined)
SWEEP_TIMEOUT_S = 3600.0
"""Longest time for reading some topics once."""
READ_TIMEOUT_S = 30.0
MEDIA_TIMEOUT_S = 300.0
WRITE_BATCH = 200


class Eraser:
    """Handles the records of `erasures.v1`.

    Of several at once one sweeps at a time, as each reads whole topics; the others wait for their turn
    or for the segments of their keys to close.
    """

    def __init__(self, event_log: EventLog, clock: Clock, media: MediaStore | None = None) -> None:
        self._log = event_log
        self._clock = clock
        self._media = media
        self._keys = UserKeyDestroyer(event_log)
        self._sweeping = asyncio.Lock()

    async def handle(self, event: Event, _: Record) -> None:
        """Do a requested erasure unless it is done.

        Raises:
            LogUnavailable: some of it is not done; hand it in again.

        """
        if not isinstance(event, ErasureRequested) or await self._is_done(event):
            return
        async with self._sweeping:
            await self._erase_media(event)
            traces = await self._erase_traces(event)
            asked = {trace for trace, whole in traces.items() if whole}
            examples = await self._empty_examples(event, asked)
            products = await self._retract_products(event, asked)
        # Last, as the sweeps read what the keys open; it takes no secret, and others may have one.
        await self._keys.destroy(event.subjects)
        completed = ErasureCompleted(
            erasure_id=event.erasure_id,
            tenant=event.tenant,
            subjects=event.subjects,
            requested_at=event.requested_at,
            traces=len(traces),
            examples=examples,
            products=products,
            completed_at=self._clock.now(),
        )
        await self._log.publish(
            ERASURES, key=event.subjects[0], event=completed, event_id=f"{event.erasure_id}:done"
        )
        counts = completed.model_dump(include={"erasure_id", "traces", "examples", "products"})
        log.info("erasure.completed", **counts)

    async def _is_done(self, event: ErasureRequested) -> bool:
        known = await erasures_of(self._log, event.tenant, event.subjects)
        return any(
            isinstance(one, ErasureCompleted) and one.erasure_id == event.erasure_id
            for one in known
        )

    async def _erase_traces(self, event: ErasureRequested) -> dict[Trace, bool]:
        """Erase the person's traces; returns them, and whether the person asked the question."""
        traces: dict[Trace, bool] = {}

        def note(record: Record) -> None:
            body = body_of(record)
            if body.get("tenant") == event.tenant and is_about(body, event.subjects):
                whole = record.topic == INTERACTIONS or is_asked_by(body, event.subjects)
                for trace in traces_of(body):
                    traces[trace] = traces.get(trace, False) or whole

        await self._sweep(note, INTERACTIONS, FEEDBACK, ANNOTATIONS)
        await self._write(
            event_record(
                FEEDBACK,
                erased,
                key=trace_id,
                source=SOURCE,
                event_id=f"{event.erasure_id}:{trace_id}",
                time=self._clock.now(),
            )
            for (tenant, trace_id), whole in traces.items()
            for erased in (
                TraceErased(
                    erasure_id=event.erasure_id,
                    trace_id=trace_id,
                    tenant=tenant,
                    subjects=event.subjects,
                    whole=whole,
                    erased_at=event.requested_at,
                ),
            )
        )
        return traces

    async def _erase_media(self, event: ErasureRequested) -> None:
        """Delete what the person sent beside texts, where it was kept."""
        if self._media is None:
            return
        try:
            async with asyncio.timeout(MEDIA_TIMEOUT_S):
                for subject in event.subjects:
                    await asyncio.to_thread(self._media.erase, event.tenant, subject)
        except (MediaUnavailable, TimeoutError) as error:
            raise LogUnavailable(f"media are not erased yet: {error}") from error

    async def _empty_examples(self, event: ErasureRequested, asked: Collection[Trace]) -> int:
        """Replace joined examples; the aggregator does so too, while it still has their rows."""
        emptied: dict[str, NewRecord] = {}

        def note(record: Record) -> None:
            emptied.pop(record.key, None)  # only the newest of a key is of interest
            if not _touches(record, event, asked):
                return
            example = _readable(record, EXAMPLE_MODELS)
            if not isinstance(example, ExampleJoined):
                return
            left = without_person(
                example, event.subjects, at=event.requested_at,
                whole=(example.tenant, example.trace_id) in asked,
            )  # fmt: skip
            if left.model_copy(update={"updated_at": example.updated_at}) != example:
                emptied[record.key] = event_record(
                    EXAMPLES,
                    left,
                    key=record.key,
                    source=SOURCE,
                    event_id=f"{event.erasure_id}:{record.key}",
                    time=self._clock.now(),
                )

        await self._sweep(note, EXAMPLES)
        await self._write(emptied.values())
        return len(emptied)

    async def _retract_products(self, event: ErasureRequested, asked: Collection[Trace]) -> int:
        """Retract pairs and unpaired examples, also those that were retracted for another reason:
        stored datasets may hold them.
        """
        found: set[str] = set()
        erased: set[str] = set()

        def note(record: Record) -> None:
            if _touches(record, event, asked):
                found.add(record.key)
            elif body_of(record).get("reason") == ERASED:
                erased.add(record.key)

        await self._sweep(note, PREFERENCES)
        await self._write(
            event_record(
                PREFERENCES,
                retraction,
                key=pair_id,
                source=SOURCE,
                event_id=f"{ERASED}:{pair_id}",
                time=self._clock.now(),
            )
            for pair_id in sorted(found - erased)
            for retraction in (
                PreferenceRetracted(
                    pair_id=pair_id,
                    tenant=event.tenant,
                    reason=ERASED,
                    created_at=event.requested_at,
                ),
            )
        )
        return len(found)

    async def _sweep(self, note: Callable[[Record], None], *topics: str) -> None:
        def keep(record: Record) -> bool:
            note(record)
            return False

        await read_to_end(self._log, *topics, timeout_s=SWEEP_TIMEOUT_S, keep=keep)

    async def _write(self, records: Iterable[NewRecord]) -> None:
        every = list(records)
        for start in range(0, len(every), WRITE_BATCH):
            await self._log.append_many(every[start : start + WRITE_BATCH])


async def erasures_of(
    event_log: EventLog, tenant: str, subjects: Collection[str]
) -> list[ErasureRequested | ErasureCompleted]:
    """Requests and completions of a person's erasures, oldest first.

    Raises:
        LogUnavailable: they cannot be read.

    """
    records = await read_to_end(
        event_log,
        ERASURES,
        timeout_s=READ_TIMEOUT_S,
        keep=lambda record: record.key in subjects,
    )
    events = (_readable(record, ERASURE_MODELS) for record in records)
    return [
        event
        for event in events
        if isinstance(event, ErasureRequested | ErasureCompleted) and event.tenant == tenant
    ]


def _readable(record: Record, models: Mapping[str, type[Event]]) -> Event | None:
    """The record's event; None where it has none, for one bad record must not end a sweep."""
    try:
        return decode(record.headers, record.value, models)
    except UnreadableRecord as error:
        log.warning(
            "erasure.unreadable", topic=record.topic, offset=record.offset, error=str(error)
        )
        return None


def _touches(record: Record, event: ErasureRequested, asked: Collection[Trace]) -> bool:
    """Whether a record is about the person, or about an answer to the person's question."""
    body = body_of(record)
    if body.get("tenant") != event.tenant:
        return False
    return is_about(body, event.subjects) or any(
        (event.tenant, one) in asked for one in traces_in(body)
    )
