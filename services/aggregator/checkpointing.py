"""Checkpointing: batches are written in an exactly-once order, then their events are acknowledged.

Outputs, rows, checkpoint and deletions are confirmed one after the other. A crash in between leaves
a prefix of that order, from which `PartitionState.recover` gets to the same sums.
"""

# pyright: reportMissingTypeStubs=false
# aiokafka has no stubs.
from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping

from aiokafka.codec import lz4_encode

from services.aggregator.batch import Batch
from services.aggregator.codec import SourceRecord, write_of
from services.aggregator.errors import CheckpointTooLarge
from services.aggregator.join_spans import JoinSpans
from services.aggregator.metrics import AggregatorMetrics, PartitionGauges
from services.aggregator.partition import PartitionState
from services.aggregator.personal_texts import PersonalTexts
from services.aggregator.rows import MAX_VALUE_BYTES
from services.aggregator.writer import Write, Writer
from shared.clock import Clock
from shared.observability.spans import nanoseconds

BATCH_S = 1.0
"""Seconds after which a batch is written however few events it has."""


class Checkpointer:
    """Holds the events folded since the last batch, and writes the next one.

    `states` are the partitions owned now, kept by the assignment; `changelog` names their topic;
    `acknowledge` takes a partition and, by topic, the last offset that is counted. `texts` encrypts
    people's texts; None leaves them in clear.
    """

    def __init__(
        self,
        states: Mapping[int, PartitionState],
        *,
        writer: Writer,
        changelog: Callable[[], str],
        acknowledge: Callable[[int, Mapping[str, int]], None],
        metrics: AggregatorMetrics,
        clock: Clock,
        spans: JoinSpans,
        texts: PersonalTexts | None = None,
    ) -> None:
        self._texts = texts
        self._states = states
        self._writer = writer
        self._changelog = changelog
        self._acknowledge = acknowledge
        self._metrics = metrics
        self._clock = clock
        self._spans = spans
        self._since_s: float | None = None
        """When the first event since the last batch was folded."""
        self._joined: list[SourceRecord] = []
        """Records folded since then, where their spans go anywhere."""
        self._ages: dict[str, list[float]] = defaultdict(list)
        """Topic -> event times of what was folded since then."""
        self.writing = asyncio.Lock()
        """Held from the moment a batch is taken until it is acknowledged."""

    def hold(self, record: SourceRecord) -> None:
        """Acknowledge a record with the next batch."""
        if self._since_s is None:
            self._since_s = self._clock.monotonic()
        if self._spans.enabled:
            self._joined.append(record)

    def observe_age(self, topic: str, event_time_s: float) -> None:
        """Measure an event's age once the next batch is confirmed."""
        self._ages[topic].append(event_time_s)

    def due(self) -> bool:
        """Whether the oldest event held has waited a whole batch interval."""
        return self._since_s is not None and self._clock.monotonic() - self._since_s >= BATCH_S

    def clear(self) -> None:
        """Forget what is held: it is read again from the last checkpoint on."""
        self._since_s = None
        self._joined.clear()
        self._ages.clear()

    async def flush(self) -> None:
        """Write outputs, rows, checkpoint and deletions, each confirmed; then acknowledge.

        Raises:
            WriteFailed: the brokers did not confirm one of them.
            CheckpointTooLarge: they would refuse a checkpoint; nothing was written.
        """
        async with self.writing:
            states = [state for state in self._states.values() if state.events]
            batches = [(state, state.take()) for state in states]
            for _, batch in batches:
                check_size(batch)
            self._since_s = None
            joined, self._joined = self._joined, []
            ages, self._ages = self._ages, defaultdict(list)
            with self._metrics.batches.time():
                await self._write([batch for _, batch in batches])
            if self._spans.enabled:
                now_ns = nanoseconds(self._clock.now())
                self._spans.joined(joined, now_ns)
                self._spans.written((one for _, batch in batches for one in batch.outputs), now_ns)
            now_s = self._clock.now().timestamp()
            for state, batch in batches:
                state.confirm(batch)
                if self._states.get(batch.partition) is state:
                    self._metrics.checkpoints.show(
                        batch.partition, batch.checkpoint, batch.changed, gauges_of(state, now_s)
                    )
                    self._acknowledge(batch.partition, batch.offsets)
            for topic, times_s in ages.items():
                self._metrics.event_ages.observe(topic, times_s, now_s)

    async def _write(self, batches: list[Batch]) -> None:
        changelog = self._changelog()
        outputs = [
            write_of(one, sampled=self._spans.sampled(one))
            for batch in batches
            for one in batch.outputs
        ]
        if self._texts is not None:
            outputs = [self._texts.encrypted(one) for one in outputs]
            await self._texts.acknowledged()
        await self._writer.write(outputs)
        await self._writer.write(
            [
                Write(changelog, batch.partition, key, value)
                for batch in batches
                for key, value in (*batch.rows, *batch.parts)
            ]
        )
        offsets = await self._writer.write(
            [
                Write(changelog, batch.partition, batch.checkpoint_key, batch.checkpoint)
                for batch in batches
            ]
        )
        for batch in batches:
            batch.position = offsets.get((changelog, batch.partition))
        await self._writer.write(
            [
                Write(changelog, batch.partition, key, None)
                for batch in batches
                for key in batch.dropped
            ]
        )


def gauges_of(state: PartitionState, now_s: float) -> PartitionGauges:
    """What a partition holds, as its gauges show it."""
    return PartitionGauges(
        state.pending,
        state.unknown(now_s),
        state.held,
        sum(state.tenants.sums.values()),
        len(state.tenants.over(state.rules.tenant_bytes)),
    )


def check_size(batch: Batch) -> None:
    """Refuse a checkpoint that the brokers would refuse. They judge its compressed size.

    Raises:
        CheckpointTooLarge: its head or a part is larger than MAX_VALUE_BYTES even compressed.

    """
    for value in (batch.checkpoint, *(value for _, value in batch.parts)):
        if len(value) <= MAX_VALUE_BYTES:
            continue
        size = len(lz4_encode(value))
        if size > MAX_VALUE_BYTES:
            raise CheckpointTooLarge(
                f"the checkpoint of partition {batch.partition} has a part of {size} bytes compressed, "
                f"at most {MAX_VALUE_BYTES} can be stored: too many versions, rollouts and segments have "
                "figures at once; serve fewer, and run the worker again once their windows are over"
            )
