"""Consumption: each event of the stream is folded once, in offset order, or refused with a letter."""

# pyright: basic, reportMissingTypeStubs=false
# faust has no useful types.
from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import structlog

from services.aggregator.checkpointing import Checkpointer
from services.aggregator.codec import MODELS, event_in, event_time_s, record_in, timestamp_ms
from services.aggregator.errors import AggregatorError, EventRefused
from services.aggregator.metrics import AggregatorMetrics
from services.aggregator.offset_gaps import Gap, Lags, OffsetGaps, SourcePosition
from services.aggregator.partition import PartitionState
from services.aggregator.ticker import Ticker
from shared.clock import Clock
from shared.contracts.events.dead_letters import DeadLetterReason
from shared.contracts.topics import TICKS
from shared.kafka.deadletters import DeadLetters
from shared.kafka.envelope import UnreadableRecord
from shared.kafka.log import LogUnavailable

log = structlog.get_logger(__name__)

BATCH_EVENTS = 500
"""Events of one partition after which a batch is written at once."""
YIELD_EVERY = 50
"""Events folded in one go before other tasks get their turn."""


class SourceLog(Protocol):
    """Where the stream's events come from."""

    async def seek(self, topic: str, partition: int, offset: int) -> None:
        """Read a topic's partition again from an offset on."""
        ...

    def ends(self) -> Mapping[tuple[str, int], int]:
        """By (topic, partition), the offset of the next event to be written, as last fetched."""
        ...


class Consumption:
    """Reads the stream into the states of the partitions owned now.

    Args:
        states: the partitions owned now, kept by the assignment.
        source: the log that the stream reads.
        die: ends the process, for failures after which nothing may be written.
    """

    def __init__(
        self,
        states: Mapping[int, PartitionState],
        *,
        checkpointer: Checkpointer,
        ticker: Ticker,
        dead_letters: DeadLetters,
        metrics: AggregatorMetrics,
        source: SourceLog,
        clock: Clock,
        die: Callable[[str], None],
    ) -> None:
        self._states = states
        self._checkpointer = checkpointer
        self._ticker = ticker
        self._dead_letters = dead_letters
        self._metrics = metrics
        self._source = source
        self._clock = clock
        self._die = die
        self._offset_gaps = OffsetGaps()
        self._lags = Lags()
        self._folded = 0
        self._advanced = 0
        """Events folded for the first time since overdue ones were last sought."""
        self._flushing: asyncio.Task[None] | None = None

    def clear(self) -> None:
        """The assignment changed: no offset that was sought is awaited any more."""
        self._offset_gaps.clear()
        self._lags.clear()

    async def fold_stream(self, stream: Any) -> None:
        """The agent's body: fold events until the stream ends, acknowledging none by itself."""
        async for event in stream.noack().events():
            try:
                await self._fold_event(event)
            except (AggregatorError, LogUnavailable) as error:
                self._die(f"writing: {error}")
            except Exception as error:
                # Faust would acknowledge the event and go on without it.
                log.exception("worker.fold_failed", error=str(error))
                self._die(f"folding: {error}")

    async def seek_overdue(self) -> None:
        """Seek each event that the log has and that does not come; to be called every second.

        A worker that works off a backlog comes to some topics late: it seeks none, as a seek throws
        away what was fetched.
        """
        advanced, self._advanced = self._advanced, 0
        if advanced > BATCH_EVENTS:
            self._lags.clear()
            return
        for topic, partition, expected, end in self._lags.overdue(
            self._positions(), self._clock.monotonic()
        ):
            log.warning("log.sought", topic=topic, partition=partition, at=expected, end=end)
            await self._source.seek(topic, partition, expected)

    def _positions(self) -> Iterator[SourcePosition]:
        ends = self._source.ends() if self._states else {}
        for (topic, partition), end in ends.items():
            state = self._states.get(partition)
            if topic in MODELS and state is not None:
                yield SourcePosition(topic, partition, state.expects(topic), end)

    async def _fold_event(self, event: Any) -> None:
        message = event.message
        state = self._states.get(message.partition)
        if state is None:
            return
        topic, offset = message.topic, message.offset
        expected = state.expects(topic)
        if offset > expected:
            if not await self._past(topic, message.partition, expected, offset):
                return
        elif offset == expected:
            self._offset_gaps.close(topic, message.partition)
        self._metrics.events.labels(topic).inc()
        if offset >= expected:
            self._advanced += 1
            await self._fold_new(state, message)
        self._checkpointer.hold(event)
        if state.events >= BATCH_EVENTS:
            await self._flush_soon()
        self._folded += 1
        if self._folded % YIELD_EVERY == 0:
            await asyncio.sleep(0)

    async def _fold_new(self, state: PartitionState, message: Any) -> None:
        topic, offset = message.topic, message.offset
        clock_s = state.aggregates.clock_s
        try:
            body = event_in(message)
            state.apply(topic, offset, body, message.value, timestamp_ms(message))
        except (UnreadableRecord, EventRefused) as error:
            await self._refuse(state, message, error.reason, error.detail)
            return
        except Exception as error:
            log.exception("event.failed", topic=topic, offset=offset)
            await self._refuse(state, message, "handler", f"{type(error).__name__}: {error}")
            return
        at_s = event_time_s(body)
        if at_s is not None:
            self._checkpointer.observe_age(topic, at_s)
        elif state.aggregates.clock_s != clock_s:
            self._ticker.moved()
        elif topic == TICKS:
            log.warning("tick.without_effect", partition=message.partition, offset=offset)

    async def _refuse(
        self, state: PartitionState, message: Any, reason: DeadLetterReason, detail: str
    ) -> None:
        # Under the lock: a letter that fails ends the worker, and never in the middle of a write.
        async with self._checkpointer.writing:
            await self._dead_letters.put(record_in(message), reason, detail)
            state.skip(message.topic, message.offset)
        log.warning("event.refused", topic=message.topic, offset=message.offset, reason=reason)

    async def _past(self, topic: str, partition: int, expected: int, offset: int) -> bool:
        """True where the log itself skips offsets; else they are read again where need be."""
        gap = self._offset_gaps.meet(topic, partition, offset)
        if gap is Gap.absent:
            self._metrics.offset_gaps.labels(topic).inc(offset - expected)
            log.warning(
                "log.offset_gap", topic=topic, partition=partition, at=expected, next=offset
            )
        elif gap is Gap.seek:
            log.info("log.sought_back", topic=topic, partition=partition, at=expected, next=offset)
            await self._source.seek(topic, partition, expected)
        return gap is Gap.absent

    async def _flush_soon(self) -> None:
        """Begin writing the batch; waits while the one before it is being written."""
        if self._flushing is not None:
            await self._flushing
        self._flushing = asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        try:
            await self._checkpointer.flush()
        except Exception as error:
            log.exception("worker.task_failed", error=str(error))
            self._die(f"background task: {error}")
