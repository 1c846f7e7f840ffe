"""Consumption: each event of the source topics is folded once, in offset order, or refused with a letter."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import structlog

from services.aggregator.checkpointing import Checkpointer
from services.aggregator.codec import MODELS, SourceRecord, event_in, event_time_s, record_in
from services.aggregator.errors import AggregatorError, EventRefused, TextSecretMissing
from services.aggregator.metrics import AggregatorMetrics
from services.aggregator.offset_gaps import Gap, Lags, OffsetGaps, ReadPlace, SourcePosition
from services.aggregator.partition import PartitionState
from services.aggregator.personal_texts import PersonalTexts
from services.aggregator.ticker import Ticker
from shared.clock import Clock
from shared.contracts.events.dead_letters import DeadLetterReason
from shared.contracts.topics import TICKS
from shared.kafka.deadletters import DeadLetters
from shared.kafka.envelope import UnreadableRecord
from shared.kafka.log import LogUnavailable
from shared.text_encryption import is_encrypted

log = structlog.get_logger(__name__)

BATCH_EVENTS = 500
"""Events of one partition after which a batch is written at once."""
SLICE_EVENTS = 50
"""Events of a topic's partition folded in one go, before other partitions and tasks get their turn."""


def no_row(_: bytes) -> None:
    """What is stored of a partition that another worker owns."""


class SourceLog(Protocol):
    """The source topics, as the group reads them."""

    async def seek(self, topic: str, partition: int, offset: int) -> None:
        """Read a topic's partition again from an offset on; nothing where it is not assigned."""
        ...

    def places(self) -> Mapping[tuple[str, int], ReadPlace]:
        """By (topic, partition), how far it is read."""
        ...

    def reads(self) -> int:
        """How many reads have returned, with events or without."""
        ...


class Consumption:
    """Folds what is read into the states of the partitions owned now.

    Args:
        states: the partitions owned now, kept by the assignment.
        source: the log that is read.
        die: ends the process, for failures after which nothing may be written.
        texts: how people's texts are encrypted; None: they are in clear.
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
        texts: PersonalTexts | None = None,
    ) -> None:
        self._texts = texts
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
        self._fetched: Mapping[object, Sequence[SourceRecord]] = {}
        """What is being folded."""
        self._flushing: asyncio.Task[None] | None = None

    def clear(self) -> None:
        """The assignment changed: no offset that was sought is awaited any more."""
        self._offset_gaps.clear()
        self._lags.clear()

    async def fold(self, fetched: Mapping[object, Sequence[SourceRecord]]) -> None:
        """Fold records as they were fetched, by (topic, partition), acknowledging none by itself."""
        self._fetched = fetched
        try:
            for records in fetched.values():
                self._metrics.events.labels(records[0].topic).inc(len(records))
            # By turns: a batch is written for all partitions at once, and is best if all fill it.
            for start in range(0, max(map(len, fetched.values())), SLICE_EVENTS):
                for records in fetched.values():
                    turn = records[start : start + SLICE_EVENTS]
                    if self._texts is not None:
                        state = self._states.get(turn[0].partition) if turn else None
                        await self._texts.prefetch(turn, state.found if state else no_row)
                    for record in turn:
                        await self._fold_record(record)
                    await asyncio.sleep(0)
        except (AggregatorError, LogUnavailable) as error:
            self._die(f"writing: {error}")
        except Exception as error:
            # Faust would fetch the next records and go on without these.
            log.exception("worker.fold_failed", error=str(error))
            self._die(f"folding: {error}")
        finally:
            self._fetched = {}

    async def seek_overdue(self) -> None:
        """Seek each event that was handed out and does not come; to be called every second.

        What waits in a fold is not sought, as while brokers are slow to confirm a batch.
        """
        late = self._lags.overdue(self._positions(), self._clock.monotonic(), self._source.reads())
        for topic, partition, expected, place in late:
            state = self._states.get(partition)
            if state is None or state.expects(topic) != expected:
                continue  # the assignment changed during the seek before this one
            log.warning("log.sought", topic=topic, partition=partition, at=expected, end=place.end)
            await self._source.seek(topic, partition, expected)

    def _positions(self) -> Iterator[SourcePosition]:
        waiting = {
            (records[0].topic, records[0].partition): range(
                records[0].offset, records[-1].offset + 1
            )
            for records in self._fetched.values()
        }
        for (topic, partition), place in self._source.places().items() if self._states else ():
            state = self._states.get(partition)
            if topic in MODELS and state is not None:
                expected = state.expects(topic)
                if expected not in waiting.get((topic, partition), ()):
                    yield SourcePosition(topic, partition, expected, place)

    def behind(self) -> dict[str, int]:
        """Events that are not counted yet, by topic, of the partitions owned."""
        first = {
            (records[0].topic, records[0].partition): records[0].offset
            for records in self._fetched.values()
            if records
        }
        found = Counter[str]()
        for (topic, partition), place in self._source.places().items() if self._states else ():
            if topic in MODELS and partition in self._states:
                at = first.get((topic, partition), place.position)
                found[topic] += max(0, place.end - at)
        return dict(found)

    async def _fold_record(self, record: SourceRecord) -> None:
        topic, partition, offset = record.topic, record.partition, record.offset
        state = self._states.get(partition)
        if state is None:
            return
        expected = state.expects(topic)
        if offset > expected:
            if not await self._past(topic, partition, expected, offset):
                return
        elif offset == expected:
            self._offset_gaps.close(topic, partition)
        else:
            return
        await self._fold_new(state, record)
        self._checkpointer.hold(record)
        if state.events >= BATCH_EVENTS:
            await self._flush_soon()

    async def _fold_new(self, state: PartitionState, record: SourceRecord) -> None:
        topic, offset = record.topic, record.offset
        clock_s = state.aggregates.clock_s
        value = record.value
        if self._texts is not None:
            value = await self._texts.opened(record)
        elif is_encrypted(value):
            # Folded without its texts, it would count and teach nothing, for good.
            raise TextSecretMissing(
                "RATCHET_TEXT_KEY_FILE: not set, and texts are encrypted; give this service the secret"
            )
        try:
            body = event_in(record, value)
            state.apply(topic, offset, body, value or b"", record.timestamp)
        except (UnreadableRecord, EventRefused) as error:
            await self._refuse(state, record, error.reason, error.detail)
            return
        except LogUnavailable:
            raise  # a row's key: no fault of the event
        except Exception as error:
            log.exception("event.failed", topic=topic, offset=offset)
            await self._refuse(state, record, "handler", f"{type(error).__name__}: {error}")
            return
        at_s = event_time_s(body)
        if at_s is not None:
            self._checkpointer.observe_age(topic, at_s)
        elif state.aggregates.clock_s != clock_s:
            self._ticker.moved()
        elif topic == TICKS:
            log.warning("tick.without_effect", partition=record.partition, offset=offset)

    async def _refuse(
        self, state: PartitionState, record: SourceRecord, reason: DeadLetterReason, detail: str
    ) -> None:
        # Under the lock: a letter that fails ends the worker, and never in the middle of a write.
        async with self._checkpointer.writing:
            await self._dead_letters.put(record_in(record), reason, detail)
            state.skip(record.topic, record.offset)
        log.warning("event.refused", topic=record.topic, offset=record.offset, reason=reason)

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
            # Shielded: a change of the assignment cancels the fold, and never a write.
            await asyncio.shield(self._flushing)
        self._flushing = asyncio.create_task(self._flush())
        # It takes the batch now: the next event would find it full, and wait until it is written.
        await asyncio.sleep(0)

    async def _flush(self) -> None:
        try:
            await self._checkpointer.flush()
        except Exception as error:
            log.exception("worker.task_failed", error=str(error))
            self._die(f"background task: {error}")
