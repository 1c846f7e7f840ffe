"""What a batch writes, in which order, and what it never covers too early."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import pytest

from services.aggregator.aggregates import Aggregates
from services.aggregator.batch import Batch
from services.aggregator.checkpointing import Checkpointer, check_size
from services.aggregator.codec import SourceRecord
from services.aggregator.consumption import BATCH_EVENTS, Consumption
from services.aggregator.errors import CheckpointTooLarge
from services.aggregator.join_spans import JoinSpans
from services.aggregator.metrics import AggregatorMetrics
from services.aggregator.partition import PartitionState
from services.aggregator.rows import MAX_VALUE_BYTES
from services.aggregator.ticker import Ticker
from services.aggregator.writer import Offsets, Write
from shared.contracts.events.dead_letters import DeadLetterReason
from shared.contracts.events.feedback import FeedbackType
from shared.contracts.topics import FEEDBACK, INTERACTIONS
from shared.kafka.deadletters import DeadLetters
from shared.kafka.log import Record
from shared.observability.spans import OFF
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.support.aggregator import feedback, interaction, source_record
from tests.unit.aggregator.simulation import recovered, stored_aggregates


class StoredWrites:
    """A writer that stores at once, or waits while `gate` is not set."""

    def __init__(self) -> None:
        self.stored: list[Write] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def write(self, writes: Sequence[Write]) -> Offsets:
        await self.gate.wait()
        self.stored.extend(writes)
        return {}

    def checkpoint(self) -> Aggregates:
        return stored_aggregates(
            {one.key: one.value for one in self.stored if one.value is not None}
        )


class SlowLetters(DeadLetters):
    """Dead letters that wait for `gate` before they are kept."""

    def __init__(self, log: MemoryLog, metrics: AggregatorMetrics) -> None:
        super().__init__(log, service="test", redact=str, metrics=metrics.registry)
        self.gate = asyncio.Event()

    async def put(self, record: Record, reason: DeadLetterReason, detail: str) -> None:
        await self.gate.wait()
        await super().put(record, reason, detail)


def refused_record(offset: int) -> SourceRecord:
    """A demonstration that makes its trace's row too large."""
    event = feedback("f9", kind=FeedbackType.demonstration, value="z" * 99_000)
    return source_record(FEEDBACK, 0, offset, event)


def full_state() -> PartitionState:
    state = recovered()
    shown = interaction(completion="x" * 90_000)
    state.apply(INTERACTIONS, 0, shown, shown.to_json(), 0)
    for number in range(8):
        told = feedback(f"f{number}", kind=FeedbackType.demonstration, value="y" * 99_000)
        state.apply(FEEDBACK, number, told, told.to_json(), 0)
    return state


def wired(
    states: dict[int, PartitionState], writer: StoredWrites, letters: DeadLetters
) -> tuple[Checkpointer, Consumption, list[dict[str, int]]]:
    """Checkpointing and consumption over some states, and what is acknowledged."""
    metrics, clock = AggregatorMetrics(), ManualClock()
    acknowledged: list[dict[str, int]] = []

    async def unexpected(*_: Any) -> Any:
        raise AssertionError("nothing is sought or counted here")

    checkpointer = Checkpointer(
        states,
        writer=writer,
        changelog=lambda: "changelog",
        acknowledge=lambda _, offsets: acknowledged.append(dict(offsets)),
        metrics=metrics,
        clock=clock,
        spans=JoinSpans(OFF),
    )
    consumption = Consumption(
        states,
        checkpointer=checkpointer,
        ticker=Ticker(states, writer=writer, partitions=unexpected, clock=clock),
        dead_letters=letters,
        metrics=metrics,
        source=cast("Any", None),
        clock=clock,
        die=pytest.fail,
    )
    return checkpointer, consumption, acknowledged


async def test_events_are_folded_while_the_batch_before_them_is_written() -> None:
    writer, state = StoredWrites(), recovered()
    checkpointer, consumption, acknowledged = wired({0: state}, writer, cast("Any", None))
    writer.gate.clear()
    # A batch of two topics is full in the middle of a slice.
    fetched: dict[object, list[SourceRecord]] = {
        topic: [source_record(topic, 0, offset, made(f"t{offset}")) for offset in range(count)]
        for topic, made, count in (
            (FEEDBACK, partial(feedback, "f"), 10),
            (INTERACTIONS, interaction, BATCH_EVENTS + 10),
        )
    }
    async with asyncio.timeout(60):
        await consumption.fold(fetched)
        assert state.expects(INTERACTIONS) == BATCH_EVENTS + 10
        assert acknowledged == []
        writer.gate.set()
        await checkpointer.flush()
    assert acknowledged == [
        {FEEDBACK: 9, INTERACTIONS: BATCH_EVENTS - 11},
        {FEEDBACK: 9, INTERACTIONS: BATCH_EVENTS + 9},
    ]


async def test_no_checkpoint_covers_a_refused_event_before_its_dead_letter_is_kept() -> None:
    writer, states = StoredWrites(), {0: full_state()}
    letters = SlowLetters(MemoryLog(), AggregatorMetrics())
    checkpointer, consumption, acknowledged = wired(states, writer, letters)
    # One flush writes, a second waits for its turn, and only then the event is refused.
    writer.gate.clear()
    flushes = [asyncio.create_task(checkpointer.flush())]
    await asyncio.sleep(0)
    state = states[0]
    second = feedback("f10", "t2")
    state.apply(FEEDBACK, 8, second, second.to_json(), 0)
    flushes.append(asyncio.create_task(checkpointer.flush()))
    await asyncio.sleep(0)
    folding = asyncio.create_task(consumption.fold({0: [refused_record(9)]}))
    await asyncio.sleep(0)
    writer.gate.set()
    await asyncio.gather(*flushes)
    assert writer.checkpoint().offsets[FEEDBACK] == 8
    letters.gate.set()
    await folding
    await checkpointer.flush()
    assert writer.checkpoint().offsets[FEEDBACK] == 9
    assert [offsets[FEEDBACK] for offsets in acknowledged] == [7, 8, 9]


def batch_of(checkpoint: bytes) -> Batch:
    return Batch(3, [], [], checkpoint, [], {})


def test_a_checkpoint_that_the_brokers_would_refuse_is_refused_first() -> None:
    noise = random.Random(1).randbytes(MAX_VALUE_BYTES + 100_000)
    told = r"partition 3 has a part of \d+ bytes compressed"
    with pytest.raises(CheckpointTooLarge, match=told):
        check_size(batch_of(noise))
    part = replace(batch_of(b"[]"), parts=[(b"key", noise)])
    with pytest.raises(CheckpointTooLarge, match=told):
        check_size(part)


def test_a_checkpoint_that_compresses_well_is_stored() -> None:
    check_size(batch_of(b"[0.0]" * MAX_VALUE_BYTES))
