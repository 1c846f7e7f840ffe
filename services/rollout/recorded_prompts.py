"""Recorded prompts of a model's users: the newest live requests, drawn at random without repeats."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from datetime import datetime
from random import Random

import orjson

from shared.contracts.events.base import Event
from shared.contracts.events.erasures import ErasureCompleted, ErasureRequested
from shared.contracts.events.interactions import InteractionRecorded, Outcome
from shared.contracts.subject import subject_of
from shared.contracts.topics import ERASURES, INTERACTIONS
from shared.kafka.envelope import UnreadableRecord, decode, models_by_type
from shared.kafka.log import EventLog, Record, read_to_end, records_to_end

NEWEST = 500
"""Records of each partition that are read: the latest requests of all models."""
READ_S = 30.0
MAX_BYTES = 64 * 2**20
"""Of the model's records that are held at once; a client may send prompts of any length."""
_MODELS = models_by_type(InteractionRecorded, ErasureRequested, ErasureCompleted)


async def recorded_prompts(
    event_log: EventLog, model: str, count: int, seed: str
) -> list[InteractionRecorded]:
    """At most `count` different prompts that can be asked again as they were; redacted.

    The topic still has those of erased people, which are left out.

    Raises:
        LogUnavailable: a topic was not read to its end in READ_S seconds.

    """
    named, held = orjson.dumps(model), 0

    def fits(record: Record) -> bool:
        nonlocal held
        value = record.value or b""
        if named not in value or held + len(value) > MAX_BYTES:
            return False
        held += len(value)
        return True

    records = await read_to_end(event_log, INTERACTIONS, timeout_s=READ_S, newest=NEWEST, keep=fits)
    erased: dict[str, datetime] = {}
    async for record in records_to_end(event_log, ERASURES, timeout_s=READ_S):
        event = _event(record)
        if isinstance(event, ErasureRequested):
            erased |= dict.fromkeys(event.subjects, event.requested_at)
    # Thousands of events take a second to read, in which the controller must not stand still.
    prompts = await asyncio.to_thread(_prompts, records, model, erased)
    return Random(seed).sample(prompts, min(count, len(prompts)))


def _prompts(
    records: Iterable[Record], model: str, erased: Mapping[str, datetime]
) -> list[InteractionRecorded]:
    found: dict[str, InteractionRecorded] = {}
    for event in map(_event, records):
        if isinstance(event, InteractionRecorded) and _was_answered(event, model):
            until = erased.get(subject_of(event.tenant, event.user_id))
            if until is None or event.started_at > until:
                found[event.prompt] = event
    return list(found.values())


def _event(record: Record) -> Event | None:
    try:
        return decode(record.headers, record.value, _MODELS)
    except (ValueError, UnreadableRecord):
        return None


def _was_answered(event: InteractionRecorded, model: str) -> bool:
    """Whether this model answered it, and a version can be asked it again."""
    return event.model == model and event.outcome is Outcome.ok and event.can_be_asked_again
