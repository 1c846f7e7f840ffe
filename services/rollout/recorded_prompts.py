"""Recorded prompts of a model's users: the newest live requests, drawn at random without repeats."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from random import Random

from shared.contracts.events.interactions import InteractionRecorded, Outcome, Purpose
from shared.contracts.topics import INTERACTIONS
from shared.kafka.envelope import UnreadableRecord, decode, models_by_type
from shared.kafka.log import EventLog, Record, read_to_end

NEWEST = 500
"""Records of each partition that are read: the latest requests of all models."""
READ_S = 30.0
_MODELS = models_by_type(InteractionRecorded)


async def recorded_prompts(
    event_log: EventLog, model: str, count: int, seed: str
) -> list[InteractionRecorded]:
    """At most `count` different prompts that can be asked again as they were; redacted.

    Raises:
        LogUnavailable: the topic was not read to its end in READ_S seconds.

    """
    records = await read_to_end(event_log, INTERACTIONS, timeout_s=READ_S, newest=NEWEST)
    # Thousands of events take a second to read, in which the controller must not stand still.
    prompts = await asyncio.to_thread(_prompts, records, model)
    return Random(seed).sample(prompts, min(count, len(prompts)))


def _prompts(records: Iterable[Record], model: str) -> list[InteractionRecorded]:
    events = (event for record in records if (event := _event(record)) is not None)
    return list({event.prompt: event for event in events if _suits(event, model)}.values())


def _event(record: Record) -> InteractionRecorded | None:
    try:
        event = decode(record.headers, record.value, _MODELS)
    except (ValueError, UnreadableRecord):
        return None
    assert isinstance(event, InteractionRecorded)
    return event


def _suits(event: InteractionRecorded, model: str) -> bool:
    """Whether it is a user's question of this model that says all that was asked."""
    return (
        event.model == model
        and event.purpose is Purpose.live
        and event.outcome is Outcome.ok
        and event.endpoint == "chat"
        and bool(event.messages)
        and event.messages[-1].role == "user"
        and not event.untrainable
        and not event.response_format
    )
