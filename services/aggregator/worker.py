"""The Faust worker: wires consumption, checkpointing and ticks to the group's rebalances.

Faust gives the group, the assignment and the table's recovery. What makes counting exactly-once is
done by hand: no acknowledgement before the brokers confirmed outputs, rows and checkpoint, in this
order, and no state kept across a change of the assignment.
"""

# pyright: basic, reportMissingTypeStubs=false
# faust has no useful types.
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import structlog

from services.aggregator.checkpointing import BATCH_S, Checkpointer, gauges_of
from services.aggregator.consumption import Consumption
from services.aggregator.disk_rows import DiskRows
from services.aggregator.errors import AggregatorError
from services.aggregator.faust_app import (
    FaustCallbacks,
    FaustLog,
    FaustSettings,
    build_app,
    changelog_end,
    changelog_of,
    coordinator_of,
    expelled,
    owned_partitions,
)
from services.aggregator.fold import FoldRules
from services.aggregator.join_spans import JoinSpans
from services.aggregator.metrics import AggregatorMetrics
from services.aggregator.offset_gaps import LAG_S
from services.aggregator.partition import PartitionState
from services.aggregator.personal_texts import PersonalTexts
from services.aggregator.recovery import recover_states
from services.aggregator.row_database import MIB, RowDatabase
from services.aggregator.session_lease import SessionLease
from services.aggregator.stall_guard import StallGuard
from services.aggregator.table_store import TableStore
from services.aggregator.ticker import Ticker
from services.aggregator.writer import Writer
from shared.clock import Clock
from shared.kafka.deadletters import DeadLetters
from shared.kafka.lag import ConsumerLag
from shared.observability.spans import Spans

log = structlog.get_logger(__name__)


class Worker:
    """One aggregator process. `die` ends it at once, for states that must not be written."""

    def __init__(
        self,
        settings: FaustSettings,
        *,
        rules: FoldRules,
        writer: Writer,
        partitions: Callable[[str], Awaitable[int]],
        dead_letters: DeadLetters,
        metrics: AggregatorMetrics,
        stall_guard: StallGuard,
        lease: SessionLease,
        clock: Clock,
        spans: Spans,
        die: Callable[[str], None],
        texts: PersonalTexts | None = None,
    ) -> None:
        self._texts = texts
        self._rules = rules
        self._partitions = partitions
        self._metrics = metrics
        self._stall_guard = stall_guard
        self._lease = lease
        self._die = die
        self._session_timeout_s = settings.session_timeout_s
        self._states: dict[int, PartitionState] = {}
        self._clock = clock
        self._ticker = Ticker(self._states, writer=writer, partitions=partitions, clock=clock)
        source = FaustLog(lambda: self.app.consumer)
        self._checkpointer = Checkpointer(
            self._states,
            writer=writer,
            changelog=lambda: changelog_of(self._table),
            acknowledge=source.acknowledge,
            metrics=metrics,
            clock=clock,
            spans=JoinSpans(spans),
            texts=texts,
        )
        self._consumption = Consumption(
            self._states,
            checkpointer=self._checkpointer,
            ticker=self._ticker,
            dead_letters=dead_letters,
            metrics=metrics,
            source=source,
            clock=clock,
            die=die,
            texts=texts,
        )
        metrics.registry.register(ConsumerLag(lambda: self._behind(settings.app_id)))
        self._joined = False
        self._tasks: list[asyncio.Task[None]] = []
        callbacks = FaustCallbacks(
            fold=self._consumption.fold,
            revoked=self._on_revoked,
            recovered=self._on_recovered,
        )
        self.app, self._table = build_app(settings, callbacks, store=self._table_store)
        self._database = RowDatabase(
            settings.data_dir / "aggregator" / settings.app_id,
            cache_bytes=settings.state_cache_mib * MIB,
        )
        metrics.watch_state(self._database.disk_bytes)

    def _behind(self, group: str) -> dict[tuple[str, str], int]:
        return {(group, topic): n for topic, n in self._consumption.behind().items()}

    async def start(self) -> None:
        """Join the group and begin. Topics must exist."""
        self._tasks = [
            asyncio.create_task(self._keep(coroutine))
            for coroutine in (
                self._stall_guard.run(),
                self._flush_by_time(),
                self._seek_by_time(),
                self._ticker.run(),
            )
        ]
        await self.app.start()

    async def stop(self) -> None:
        """Write what is folded, leave the group, end."""
        try:
            async with asyncio.timeout(self._session_timeout_s):
                await self._checkpointer.flush()
        except (AggregatorError, TimeoutError) as error:
            # The producer still holds what was not confirmed, and would send it on its way out.
            self._die(f"could not write before stopping: {error}")
        for task in self._tasks[1:]:
            task.cancel()
        self._drop()
        await self.app.stop()
        self._database.close()
        self._tasks[0].cancel()

    def joined(self) -> bool:
        """The group has let this worker in, with or without partitions."""
        return self._joined

    def idle_s(self) -> float:
        """Seconds without progress: see Ticker.idle_s."""
        return self._ticker.idle_s()

    async def _keep(self, coroutine: Any) -> None:
        """Run a background task; its end by an error ends the worker."""
        try:
            await coroutine
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("worker.task_failed", error=str(error))
            self._die(f"background task: {error}")

    async def _flush_by_time(self) -> None:
        while True:
            await asyncio.sleep(BATCH_S / 20)
            if self.app.crashed:
                self._die("Faust gave up; its log says why")
            if self._checkpointer.due():
                await self._checkpointer.flush()

    async def _seek_by_time(self) -> None:
        while True:
            await asyncio.sleep(LAG_S)
            await self._consumption.seek_overdue()

    async def _on_revoked(self, *_: Any, **__: Any) -> None:
        """The assignment changes: write what is folded while it is owned, keep no state."""
        # Faust calls this before each join, the first one included.
        self._lease.watch(coordinator_of(self.app))
        if not self._states:
            return
        if expelled(self.app):
            # The partitions may be another's by now; what is not written comes again to it.
            if self._checkpointer.writing.locked():
                self._die("the group expelled this worker in the middle of a write")
            self._drop()
            log.warning("partitions.lost")
            return
        try:
            async with asyncio.timeout(self._session_timeout_s):
                await self._checkpointer.flush()
        except (AggregatorError, TimeoutError) as error:
            self._die(f"could not hand over in time: {error}")
        self._drop()
        log.info("partitions.revoked")

    def _drop(self) -> None:
        self._stall_guard.armed = self._lease.armed = False
        self._states.clear()
        self._checkpointer.clear()
        self._consumption.clear()
        self._metrics.checkpoints.hide()
        self._metrics.owned.set(0)

    async def _on_recovered(self) -> None:
        """Faust swallows what its callbacks raise; a worker without its state must not go on."""
        try:
            await self._recover()
        except Exception as error:
            log.exception("partitions.recovery_failed", error=str(error))
            self._die(f"recovering: {error}")

    def _table_store(self, app: Any, table: Any) -> TableStore:
        self._store = TableStore(app, table, rows=self._rows, clock=self._clock, die=self._die)
        return self._store

    async def _recover(self) -> None:
        """The rows are what the changelog has: build the state of each owned partition."""
        if self._texts is not None:
            await self._texts.ready()
        changelog = changelog_of(self._table)
        owned = owned_partitions(self.app, changelog)
        for partition in owned:
            self._store.check(partition, changelog_end(self.app, changelog, partition))
        partitions = await self._partitions(changelog)
        # A tenant's traces lie on all partitions alike.
        rules = replace(self._rules, tenant_bytes=self._rules.tenant_bytes // partitions)
        states = {
            partition: PartitionState(partition, self._rows(partition), rules, self._texts)
            for partition in owned
        }
        await recover_states(states.values())
        self._store.sweep(range(partitions), set(owned))
        self._drop()
        self._stall_guard.beat()
        self._stall_guard.armed = self._lease.armed = bool(states)
        self._states.update(states)
        self._joined = True
        now_s = self._clock.now().timestamp()
        for partition, state in states.items():
            self._metrics.checkpoints.show(partition, *state.checkpoint(), gauges_of(state, now_s))
        self._metrics.owned.set(len(states))
        self._ticker.moved()
        rows = sum(state.held for state in states.values())
        log.info(
            "partitions.recovered", partitions=owned, rows=rows, restored=self._store.restored()
        )

    def _rows(self, partition: int) -> DiskRows:
        return DiskRows(self._database, partition, rules=self._rules, clock=self._clock)
