"""The Faust worker: reads the four topics, folds each event, writes batches, acknowledges last.

Faust gives the group, the assignment and the table's recovery. Everything that must be exact is
done here by hand: no acknowledgement before the brokers confirmed outputs, rows and checkpoint, in
this order, and no state kept across a change of the assignment.
"""

# pyright: basic, reportMissingTypeStubs=false
# faust has no useful types.
from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import faust
import structlog
from faust.types import TP

from services.aggregator.errors import AggregatorError, DataDirUnusable, EventRefused
from services.aggregator.fold import FoldRules, Output
from services.aggregator.metrics import AggregatorMetrics
from services.aggregator.offset_gaps import Gap, OffsetGaps
from services.aggregator.partition import Batch, PartitionState
from services.aggregator.rows import partition_of
from services.aggregator.stall_guard import StallGuard
from services.aggregator.writer import Write, Writer
from shared.clock import Clock
from shared.contracts.events.base import Event
from shared.contracts.events.dead_letters import DeadLetterReason
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackWithdrawn
from shared.contracts.events.interactions import InteractionRecorded
from shared.contracts.events.quality import Tick
from shared.contracts.events.rated import RatedAnswer, RatedScore
from shared.contracts.events.votes import VoteCast
from shared.contracts.topics import AGGREGATOR_CHANGELOG, FEEDBACK, INTERACTIONS, RATED, TICKS
from shared.kafka.deadletters import DeadLetters
from shared.kafka.envelope import Headers, Unreadable, decode, encode, headers_of, models_by_type
from shared.kafka.log import LogUnavailable, Record

log = structlog.get_logger(__name__)

SOURCE = "/ratchet/aggregator"
MODELS = {
    INTERACTIONS: models_by_type(InteractionRecorded),
    FEEDBACK: models_by_type(FeedbackSubmitted, FeedbackWithdrawn, VoteCast),
    RATED: models_by_type(RatedAnswer, RatedScore),
    TICKS: models_by_type(Tick),
}
BATCH_EVENTS = 500
"""Events of one partition after which a batch is written at once."""
BATCH_S = 1.0
"""Seconds after which a batch is written however few events it has."""
TICK_S = 1.0
YIELD_EVERY = 50
"""Events folded in one go before other tasks get their turn."""
RECOVERY_CHUNK = 500
"""Rows read in one go while recovering."""
HEARTBEAT_S = 2.0
NO_GENERATION = -1
"""What aiokafka's coordinator holds while the group does not know it."""


class Worker:
    """One aggregator process. `die` ends it at once, for states that must not be written."""

    def __init__(
        self,
        *,
        bootstrap: str,
        app_id: str,
        session_timeout_s: float,
        data_dir: Path,
        rules: FoldRules,
        writer: Writer,
        partitions: Callable[[str], Awaitable[int]],
        dead_letters: DeadLetters,
        metrics: AggregatorMetrics,
        stall_guard: StallGuard,
        clock: Clock,
        die: Callable[[str], None],
    ) -> None:
        self._rules = rules
        self._writer = writer
        self._partitions = partitions
        self._dead_letters = dead_letters
        self._metrics = metrics
        self._stall_guard = stall_guard
        self._clock = clock
        self._die = die
        self._session_timeout_s = session_timeout_s
        self._states: dict[int, PartitionState] = {}
        self._held: list[Any] = []
        self._ages: list[tuple[str, float]] = []
        self._held_since = 0.0
        self._folded = 0
        self._offset_gaps = OffsetGaps()
        self._writing = asyncio.Lock()
        self._flushing: asyncio.Task[None] | None = None
        self._last_tick = clock.monotonic()
        self._joined = False
        self._tasks: list[asyncio.Task[None]] = []
        self.app, self._table = self._build(bootstrap, app_id, data_dir)

    def _build(self, bootstrap: str, app_id: str, data_dir: Path) -> tuple[Any, Any]:
        make_data_dir(data_dir)
        app: Any = faust.App(
            app_id,
            broker=f"kafka://{bootstrap.replace(',', ';')}",
            datadir=str(data_dir / "faust"),
            store="memory://",
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            table_standby_replicas=0,
            stream_wait_empty=False,
            stream_recovery_delay=0.0,
            consumer_auto_offset_reset="earliest",
            broker_session_timeout=self._session_timeout_s,
            broker_heartbeat_interval=min(HEARTBEAT_S, self._session_timeout_s / 4),
            broker_request_timeout=self._session_timeout_s * 3,
            broker_commit_interval=1.0,
        )
        table = app.Table("joins", key_type=bytes, value_type=bytes, on_recover=self._on_recovered)
        name = table.changelog_topic.get_topic_name()
        if app_id == "ratchet.aggregator":
            assert name == AGGREGATOR_CHANGELOG, name
        # Raw by name: the type alone would still let Faust parse each value as JSON, and drop it
        # with an acknowledgement where that fails.
        topic = app.topic(
            *MODELS,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
            allow_empty=True,
        )
        app.agent(topic, concurrency=1, name="fold")(self._fold_stream)
        app.on_partitions_revoked.connect(self._on_revoked)
        return app, table

    async def start(self) -> None:
        """Join the group and begin. Topics must exist."""
        self._tasks = [
            asyncio.create_task(self._keep(coroutine))
            for coroutine in (self._stall_guard.run(), self._flush_by_time(), self._tick())
        ]
        await self.app.start()

    async def stop(self) -> None:
        """Write what is folded, leave the group, end."""
        with contextlib.suppress(AggregatorError, TimeoutError):
            async with asyncio.timeout(self._session_timeout_s):
                await self._flush()
        for task in self._tasks[1:]:
            task.cancel()
        self._drop()
        await self.app.stop()
        self._tasks[0].cancel()

    def joined(self) -> bool:
        """The group has let this worker in, with or without partitions."""
        return self._joined

    def idle_s(self) -> float:
        """Seconds since a tick was counted, or since nothing is owned; the measure of progress."""
        if not self._states:
            self._last_tick = self._clock.monotonic()
        return self._clock.monotonic() - self._last_tick

    async def _keep(self, coroutine: Any) -> None:
        """Run a background task; its end by an error ends the worker."""
        try:
            await coroutine
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("worker.task_failed", error=str(error))
            self._die(f"background task: {error}")

    # -- events

    async def _fold_stream(self, stream: Any) -> None:
        async for event in stream.noack().events():
            try:
                await self._fold_event(event)
            except (AggregatorError, LogUnavailable) as error:
                self._die(f"writing: {error}")
            except Exception as error:
                # Faust would acknowledge the event and go on without it.
                log.exception("worker.fold_failed", error=str(error))
                self._die(f"folding: {error}")

    async def _fold_event(self, event: Any) -> None:
        message = event.message
        state = self._states.get(message.partition)
        if state is None:
            return
        topic, offset = message.topic, message.offset
        expected = state.expects(topic)
        if offset > expected and not await self._past(topic, message.partition, expected, offset):
            return
        self._metrics.events.labels(topic).inc()
        if not self._held:
            self._held_since = self._clock.monotonic()
        if offset >= expected:
            await self._fold_new(state, event)
        self._held.append(event)
        if state.events >= BATCH_EVENTS:
            await self._flush_soon()
        self._folded += 1
        if self._folded % YIELD_EVERY == 0:
            await asyncio.sleep(0)

    async def _fold_new(self, state: PartitionState, event: Any) -> None:
        message = event.message
        topic, offset, value = message.topic, message.offset, message.value
        clock_s = state.aggregates.clock_s
        try:
            body = decode(_headers(message), value, MODELS[topic])
            state.apply(topic, message.offset, body, value, int((message.timestamp or 0) * 1000))
        except (Unreadable, EventRefused) as error:
            await self._refuse(state, message, error.reason, error.detail)
            return
        except Exception as error:
            log.exception("event.failed", topic=topic, offset=message.offset)
            await self._refuse(state, message, "handler", f"{type(error).__name__}: {error}")
            return
        at_s = _event_time_s(body)
        if at_s is not None:
            self._ages.append((topic, at_s))
        elif state.aggregates.clock_s != clock_s:
            self._last_tick = self._clock.monotonic()
        elif topic == TICKS:
            log.warning("tick.without_effect", partition=message.partition, offset=offset)

    async def _refuse(
        self, state: PartitionState, message: Any, reason: DeadLetterReason, detail: str
    ) -> None:
        # Under the lock, so that no checkpoint covers the event before its letter is kept.
        async with self._writing:
            record = Record(
                message.topic,
                message.partition,
                message.offset,
                (message.key or b"").decode("utf-8", "replace"),
                message.value,
                _headers(message),
                int((message.timestamp or 0) * 1000),
            )
            await self._dead_letters.put(record, reason, detail)
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
            await self.app.consumer.seek(TP(topic, partition), expected)
        return gap is Gap.absent

    # -- batches

    async def _flush_soon(self) -> None:
        """Begin writing the batch; waits while the one before it is being written."""
        if self._flushing is not None:
            await self._flushing
        self._flushing = asyncio.create_task(self._keep(self._flush()))

    async def _flush_by_time(self) -> None:
        while True:
            await asyncio.sleep(BATCH_S / 20)
            if self.app.crashed:
                self._die("Faust gave up; its log says why")
            if self._held and self._clock.monotonic() - self._held_since >= BATCH_S:
                await self._flush()

    async def _flush(self) -> None:
        """Write outputs, rows, checkpoints and deletions, each confirmed; then acknowledge."""
        async with self._writing:
            states = [state for state in self._states.values() if state.events]
            batches = [(state, state.take()) for state in states]
            held, self._held = self._held, []
            ages, self._ages = self._ages, []
            with self._metrics.batches.time():
                await self._write([batch for _, batch in batches])
            for state, batch in batches:
                state.confirm(batch)
                if self._states.get(batch.partition) is state:
                    self._metrics.checkpoints.show(batch.partition, batch.checkpoint, state.pending)
            for event in held:
                event.ack()
            now_s = self._clock.now().timestamp()
            for topic, at_s in ages:
                self._metrics.event_age.labels(topic).observe(max(0.0, now_s - at_s))

    async def _write(self, batches: list[Batch]) -> None:
        await self._writer.write([_output(one) for batch in batches for one in batch.outputs])
        await self._writer.write(
            [
                Write(self._changelog, batch.partition, key, value)
                for batch in batches
                for key, value in batch.rows
            ]
        )
        await self._writer.write(
            [
                Write(self._changelog, batch.partition, batch.checkpoint_key, batch.checkpoint)
                for batch in batches
            ]
        )
        await self._writer.write(
            [
                Write(self._changelog, batch.partition, key, None)
                for batch in batches
                for key in batch.dropped
            ]
        )

    @property
    def _changelog(self) -> str:
        return self._table.changelog_topic.get_topic_name()

    # -- ownership

    async def _on_revoked(self, *_: Any, **__: Any) -> None:
        """The assignment changes: write what is folded while it is ours, keep no state."""
        if not self._states:
            return
        if self._expelled():
            # The partitions may be another's by now; what is not written comes again to it.
            if self._writing.locked():
                self._die("the group expelled this worker in the middle of a write")
            self._drop()
            log.warning("partitions.lost")
            return
        try:
            async with asyncio.timeout(self._session_timeout_s):
                await self._flush()
        except (AggregatorError, TimeoutError) as error:
            self._die(f"could not hand over in time: {error}")
        self._drop()
        log.info("partitions.revoked")

    def _expelled(self) -> bool:
        """The coordinator has taken this worker's generation away: its session had ended."""
        coordinator = self.app.consumer._thread._consumer._coordinator
        return coordinator.generation == NO_GENERATION

    def _drop(self) -> None:
        self._stall_guard.armed = False
        self._states.clear()
        self._held.clear()
        self._ages.clear()
        self._offset_gaps.clear()
        self._metrics.checkpoints.hide()
        self._metrics.owned.set(0)

    async def _on_recovered(self) -> None:
        """Faust swallows what its callbacks raise; a worker without its state must not go on."""
        try:
            await self._recover()
        except Exception as error:
            log.exception("partitions.recovery_failed", error=str(error))
            self._die(f"recovering: {error}")

    async def _recover(self) -> None:
        """The table holds what the changelog has: build the state of each owned partition."""
        changelog = self._changelog
        owned = {
            tp.partition for tp in self.app.assignor.assigned_actives() if tp.topic == changelog
        }
        data = self._table.data.data
        keys: dict[int, list[bytes]] = defaultdict(list)
        for key in list(data):
            partition = partition_of(key)
            if partition in owned:
                keys[partition].append(key)
            else:
                del data[key]
        states: dict[int, PartitionState] = {}
        for partition in sorted(owned):
            state = states[partition] = PartitionState(partition, data, self._rules)
            for start in range(0, max(1, len(keys[partition])), RECOVERY_CHUNK):
                state.recover(keys[partition][start : start + RECOVERY_CHUNK])
                await asyncio.sleep(0)
        self._drop()
        self._stall_guard.beat()
        self._stall_guard.armed = bool(states)
        self._states = states
        self._joined = True
        for partition, state in states.items():
            self._metrics.checkpoints.show(partition, state.aggregates.encode(), state.pending)
        self._metrics.owned.set(len(states))
        self._last_tick = self._clock.monotonic()
        log.info("partitions.recovered", partitions=sorted(states), rows=len(data))

    # -- ticks

    async def _tick(self) -> None:
        """While partition 0 is ours, tell every partition once a second what time it is."""
        while True:
            await self._clock.sleep(TICK_S)
            if 0 not in self._states:
                continue
            at = self._clock.now()
            writes = []
            for partition in range(await self._partitions(TICKS)):
                tick = Tick(at=at, partition=partition)
                headers = encode(
                    tick, source=SOURCE, event_id=f"{partition}:{at.isoformat()}", time=at
                )
                key = str(partition).encode()
                writes.append(Write(TICKS, partition, key, tick.to_json(), headers))
            await self._writer.write(writes)


def make_data_dir(path: Path) -> None:
    """Make Faust's directory where it is missing.

    Raises:
        DataDirUnusable: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataDirUnusable(f"RATCHET_DATA_DIR: {error}") from error


def _headers(message: Any) -> Headers:
    headers = message.headers or ()
    return headers_of(headers.items() if isinstance(headers, dict) else headers)


def _output(output: Output) -> Write:
    headers = encode(output.event, source=SOURCE, event_id=output.event_id, time=output.time)
    return Write(output.topic, None, output.key.encode(), output.event.to_json(), headers)


def _event_time_s(event: Event) -> float | None:
    match event:
        case InteractionRecorded():
            return event.started_at.timestamp() + event.duration_ms / 1000
        case FeedbackSubmitted() | FeedbackWithdrawn() | VoteCast():
            return event.submitted_at.timestamp()
        case _:
            return None
