"""Training worker: follows the job topics and does waiting jobs, oldest first, one at a time.

Of several replicas the holder of the lease does the jobs, asks for the schedule's own and reminds. The
others know all that it knows, show the same figures and take erased rows out of what they have stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import structlog

from services.training import reward_models
from services.training.erasure import DatasetEraser
from services.training.jobs import JobQueue
from services.training.metrics import TrainingMetrics
from services.training.runner import Runner
from services.training.scheduler import Scheduler
from services.training.settings import TrainingSettings
from services.training.workspace import prune
from shared.contracts.events.training import TrainingCancelled, TrainingProgress, TrainingRequested
from shared.contracts.topics import TRAINING_JOBS, TRAINING_RUNS
from shared.kafka.deadletters import DeadLetters
from shared.kafka.envelope import UnreadableRecord, decode, models_by_type
from shared.kafka.lease import Lease
from shared.kafka.log import EventLog, LogUnavailable, Record
from shared.kafka.user_keys import TextsLocked
from shared.observability.events import Unavailable
from shared.registry.follow import RegistryFollower

log = structlog.get_logger(__name__)

MODELS = models_by_type(TrainingRequested, TrainingCancelled, TrainingProgress)
START_TIMEOUT_S = 30.0


class TrainingWorker:
    """One worker for all jobs, while it holds the lease.

    Jobs are not committed offsets: what has no end yet, waits.
    """

    def __init__(
        self,
        *,
        event_log: EventLog,
        queue: JobQueue,
        registry: RegistryFollower,
        runner: Runner,
        scheduler: Scheduler,
        eraser: DatasetEraser,
        dead_letters: DeadLetters,
        lease: Lease,
        metrics: TrainingMetrics,
        settings: TrainingSettings,
    ) -> None:
        self._tail = event_log.tail(TRAINING_JOBS, TRAINING_RUNS)
        self._queue = queue
        self._registry = registry
        self._runner = runner
        self._scheduler = scheduler
        self._eraser = eraser
        self._dead_letters = dead_letters
        self._lease = lease
        self._metrics = metrics
        self._interval_s = settings.schedule_interval_s
        self._keep_jobs = settings.keep_jobs
        self._news = asyncio.Event()
        self._running: tuple[str, asyncio.Task[object]] | None = None
        self._current = False
        """Whether the logs were read to their ends, so that a job without an end has none."""

    def age_s(self) -> float:
        """Seconds since the job topics were last read to their end."""
        return self._tail.age_s()

    async def follow(self) -> None:
        """Fold the job topics until cancelled."""
        try:
            async for record in self._tail:
                await self._fold(record)
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await self._tail.close()

    async def work(self) -> None:
        """Do what waits and consider the schedule, until cancelled."""
        await self._started()
        while True:
            self._runner.alive()
            await self._eraser.sweep(self._runner.alive)
            waiting = list(self._queue.waiting())
            leads = self._leads()
            self._metrics.waiting.set(len(waiting))
            self._metrics.lease.set(leads)
            reward_models.show(self._registry.registry, self._metrics)
            if waiting and leads:
                await self._do(waiting[0])
                continue
            await self._scheduler.consider(asks=leads)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._news.wait()
            self._news.clear()

    async def _started(self) -> None:
        """Wait for whole knowledge: who has not read the ends would do ended jobs again."""
        while True:
            self._runner.alive()
            try:
                await self._tail.caught_up(START_TIMEOUT_S)
                await self._registry.caught_up(START_TIMEOUT_S)
                await self._eraser.caught_up(START_TIMEOUT_S)
            except TextsLocked as error:
                log.warning("worker.texts_locked", error=str(error))
                self._current = True  # jobs that read texts fail, and say why
                return
            except LogUnavailable as error:
                log.warning(Unavailable.kafka, during="catch_up", error=str(error))
            else:
                self._current = True
                return

    def _leads(self) -> bool:
        """Whether this replica holds the lease and knows what was on the log when it got it.

        Who held it before may have ended a job just then.
        """
        read_s = max(self._tail.age_s(), self._registry.age_s())
        return self._lease.held() and time.monotonic() - read_s >= self._lease.since()

    def standby(self) -> str | None:
        """A note for readiness: why this replica begins no job, or None."""
        if self._lease.held():
            return None
        return "standby: another replica has the lease, or the brokers do not say who has it"

    async def _do(self, job: TrainingRequested) -> None:
        log.info("job.begins", job_id=job.job_id, method=job.method.value, actor=job.actor)
        if not await self._run(job):
            log.warning("job.left", job_id=job.job_id, why="another replica has the lease")
            self._metrics.no_job(job.method.value)
            return
        self._queue.note(job.job_id)
        self._scheduler.look_again()
        open_jobs = [waiting.job_id for waiting in self._queue.waiting()]
        await asyncio.to_thread(prune, self._runner.jobs, keep=self._keep_jobs, open_jobs=open_jobs)

    async def _run(self, job: TrainingRequested) -> bool:
        """Do a job to its end, or to its cancellation by a person; False where the lease is lost.

        It has no end then, as after a kill: whoever has the lease does it.
        """
        cancelled = self._queue.cancelled(job.job_id)
        if cancelled is None:
            running = asyncio.create_task(self._runner.run(job))
            self._running = (job.job_id, running)
            leaving = asyncio.create_task(self._leave(running))
            try:
                await running
            except asyncio.CancelledError:
                cancelled = self._queue.cancelled(job.job_id)
                this = asyncio.current_task()
                if this is not None and this.cancelling():
                    raise
                if leaving.done():
                    return False
                if cancelled is None:
                    raise
            finally:
                leaving.cancel()
                self._running = None
        if cancelled is not None and self._queue.ended(job.job_id) is None:
            await self._runner.cancel(job, cancelled)
        return True

    async def _leave(self, running: asyncio.Task[object]) -> None:
        """Stop a run once another replica has the lease."""
        await self._lease.lost()
        running.cancel()

    async def _fold(self, record: Record) -> None:
        try:
            event = decode(record.headers, record.value, MODELS)
        except UnreadableRecord as error:
            await self._put_aside(record, error)
            return
        assert isinstance(event, TrainingRequested | TrainingCancelled | TrainingProgress)
        if isinstance(event, TrainingCancelled):
            await self._cancel(event)
        if self._queue.put(event):
            if self._current and isinstance(event, TrainingRequested) and self._leads():
                await self._refuse_invalid(event)
            self._news.set()

    async def _cancel(self, event: TrainingCancelled) -> None:
        """Stop the job if it runs; end it if it waits. One that has ended stays as it is.

        Who gets the lease ends what was cancelled before.
        """
        self._queue.put(event)
        if self._running is not None and self._running[0] == event.job_id:
            self._running[1].cancel()
            return
        job = self._queue.find(event.job_id)
        if job is not None and self._current and self._leads():
            await self._runner.cancel(job, event)
            self._queue.note(job.job_id)

    async def _refuse_invalid(self, job: TrainingRequested) -> None:
        if await self._runner.refuse(job):
            self._queue.note(job.job_id)

    async def _put_aside(self, record: Record, error: UnreadableRecord) -> None:
        """Dead letters have the record's place as their id, so one more at a restart is the same."""
        log.warning("job.unreadable", offset=record.offset, error=str(error))
        try:
            await self._dead_letters.put(record, error.reason, error.detail)
        except LogUnavailable as unavailable:
            log.warning(
                Unavailable.kafka,
                during="dead_letter",
                offset=record.offset,
                error=str(unavailable),
            )
