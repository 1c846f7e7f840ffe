"""Training scheduler: counts new preference pairs and requests a job when the trigger fires."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from datetime import date, datetime

import structlog

from services.training.dataset_manifest import Manifest
from services.training.dataset_store import DatasetStore
from services.training.errors import StoreUnavailable
from services.training.fresh_scorer import FreshScorer
from services.training.jobs import JobQueue
from services.training.metrics import TrainingMetrics
from services.training.pair_index import PairIndex
from services.training.plans import monday_of, week_progress
from services.training.reminders import CollectionStatus
from services.training.reward_freshness import MOST_VOTES, FreshAgreement, VotePlace
from services.training.reward_schedule import RewardInputs, decide_reward, drift, reward_wait
from services.training.settings import TrainingSettings
from services.training.snapshot import MODELS, Offsets, place
from services.training.trigger import PairCounter, PairCounts, TriggerInputs, decide
from shared.clock import Clock
from shared.contracts.events.training import TrainingMethod, TrainingRequested
from shared.contracts.events.versions import VersionRecord
from shared.contracts.topics import PREFERENCES, TRAINING_JOBS
from shared.kafka.envelope import UnreadableRecord, decode
from shared.kafka.log import EventLog, LogUnavailable, Record, TopicReplaced
from shared.observability.events import Unavailable
from shared.registry.follow import RegistryFollower

log = structlog.get_logger(__name__)

RECOUNT_REST = 9.0
"""How much longer than a count of the pairs the next one waits, so that a tenth of a core counts."""
LOOK_INTERVAL_S = 60.0
"""How often the store is asked for snapshots that another replica may have made, and all pairs are
looked at for drift."""

KEEP_S = 5.0
"""How often the index of pairs is put on disk: so much is read again after a kill."""
WHOLE_S = 30.0
"""Age of the pairs up to which they are whole enough to remind people by, and to look at fresh ones."""


class Scheduler:
    """Counts new pairs and asks for a job when the decision says so."""

    def __init__(
        self,
        *,
        event_log: EventLog,
        queue: JobQueue,
        registry: RegistryFollower,
        store: DatasetStore,
        settings: TrainingSettings,
        metrics: TrainingMetrics,
        clock: Clock,
        index: PairIndex | None = None,
        fresh: FreshScorer | None = None,
        remind: Callable[[CollectionStatus], None] | None = None,
    ) -> None:
        """Take the log, what it is folded into, and where pairs are kept over restarts.

        `fresh` has fresh votes scored; without it accuracy on them starts no training. `remind` is
        told where the collection plan stands, at each look while it is on.
        """
        self._remind = remind
        self._fresh = fresh
        self._log = event_log
        self._queue = queue
        self._registry = registry
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        labelled = settings.method == "kto"
        self._index = PairIndex() if index is None else index
        self._pairs = PairCounter(
            settings.model, settings.rules, labelled=labelled, index=self._index
        )
        self._counting = asyncio.Lock()
        """Held while a thread counts or stores, and no event is applied."""
        self._counts: PairCounts | None = None
        self._counts_of: tuple[Offsets, Offsets, date] | None = None
        self._recount_at = -math.inf
        self._counted_all = False
        """Whether the last count had all pairs of the log: not at a start, nor without Kafka."""
        self._reached = dict(self._index.positions())
        """Where reading of each partition went on when it was last looked at."""
        self._tail = event_log.tail(PREFERENCES, positions=self._reached)
        self._why = ""
        self._snapshots: list[Manifest] = []
        self._looked_at = -math.inf
        self._drift_at = -math.inf

    async def count(self) -> None:
        """Follow the pairs until cancelled."""
        while True:
            try:
                async for record in self._tail:
                    async with self._counting:
                        self._apply(record)
                return
            except TopicReplaced as error:
                async with self._counting:
                    await self._forget_all(str(error))
            finally:
                with contextlib.suppress(asyncio.CancelledError):
                    await self._tail.close()
            self._tail = self._log.tail(PREFERENCES)

    async def keep(self) -> None:
        """Put the pairs that were read on disk, and what was taken out off it, until cancelled.

        A topic that ends before what was read of it was made anew, and is so forgotten before it has
        a record.
        """
        while True:
            await asyncio.sleep(KEEP_S)
            async with self._counting:
                now = self._tail.positions()
                if any(now.get(one, offset) < offset for one, offset in self._reached.items()):
                    await self._forget_all("its end is before what was read")
                self._reached.update(now)
                if self._fresh is not None:
                    await asyncio.to_thread(self._index.keep_verdicts, self._fresh.known)
                await asyncio.to_thread(self._index.commit)

    async def _forget_all(self, why: str) -> None:
        """Count nothing any more, while nothing else is counted: the topic is another."""
        log.warning("schedule.pairs_replaced", error=why)
        self._reached.clear()
        if self._fresh is not None:
            self._fresh.forget()
        await asyncio.to_thread(self._pairs.forget_all)

    async def _stands(self, pair_id: str, vote: VotePlace) -> bool:
        async with self._counting:
            return await asyncio.to_thread(self._index.stands, pair_id, vote)

    def _apply(self, record: Record) -> None:
        if not self._index.takes(record):
            return
        with contextlib.suppress(UnreadableRecord):
            event = decode(record.headers, record.value, MODELS)
            self._pairs.apply(event, place(record), record.offset)

    def age_s(self) -> float:
        """Seconds since the pairs were last read to their end."""
        return self._tail.age_s()

    def look_again(self) -> None:
        """Note that there may be a new snapshot, as a job has ended."""
        self._looked_at = -math.inf

    async def consider(self, *, asks: bool) -> None:
        """Show what is missing, and with `asks` ask for a job if it is time, and remind.

        What Kafka or storage refuses is tried again later.
        """
        asked = await self._consider_version(asks)
        now = self._clock.monotonic()
        if not asked and now - self._drift_at >= LOOK_INTERVAL_S:
            self._drift_at = now
            await self._consider_reward(asks)

    async def _consider_reward(self, asks: bool) -> None:
        settings = self._settings
        known = self._registry.registry.rewards(settings.model)
        offsets = known[-1].dataset.offsets if known else {}
        async with self._counting:
            before, since = await asyncio.to_thread(self._pairs.shapes, offsets)
            judged = await asyncio.to_thread(lambda: self._pairs.judged)
            whole = self.age_s() <= WHOLE_S
            if known and whole and self._fresh is not None and self._fresh.is_due(known[-1]):
                votes = await asyncio.to_thread(self._pairs.unlearned, offsets, MOST_VOTES)
                self._fresh.note(known[-1], votes, self._stands)
        for feature, index in drift(before, since).items():
            self._metrics.reward_drift.labels(settings.model, feature).set(index)
        inputs = RewardInputs(
            model=settings.model,
            judge_pairs=judged,
            min_judge_pairs=settings.gate.min_judge_pairs,
            every_days=settings.reward_every_days,
            max_drift=settings.reward_max_drift,
            known=before,
            fresh=since,
            agreement=self._fresh.agreement if self._fresh else FreshAgreement(),
            min_fresh_votes=settings.reward_fresh_votes,
            seed=settings.seed,
        )
        registry, now = self._registry.registry, self._clock.now()
        wait = reward_wait(inputs, self._queue, registry, now)
        for kind, rows in (("days", wait.days), ("judge_pairs", wait.pairs)):
            self._metrics.reward_missing.labels(settings.model, kind).set(rows)
        job, why = decide_reward(inputs, self._queue, registry, now)
        if job is not None and asks:
            await self._ask(job, why)

    async def _consider_version(self, asks: bool) -> bool:
        """Ask for a version's training if it is time; tells whether a job was asked for."""
        settings = self._settings
        try:
            snapshots = await self._known_snapshots()
        except StoreUnavailable as error:
            log.warning(Unavailable.storage, during="newest_dataset", error=str(error))
            return False
        last = snapshots[-1] if snapshots else None
        trained = self._trained(snapshots)
        now = self._clock.now()
        counts = await self._counted(trained, last.offsets if last else {}, monday_of(now))
        self._metrics.new_pairs.labels(settings.model).set(counts.new.total())
        plan = settings.collection_plan
        week = week_progress(counts.week, plan.weekly, now)
        self._metrics.show_week(settings.model, week)
        categories = plan.missing_by_category(counts.new)
        inputs = TriggerInputs(
            model=settings.model,
            new_pairs=counts.new.total(),
            min_pairs=plan.pairs,
            judge_pairs=counts.judged,
            min_judge_pairs=settings.gate.min_judge_pairs,
            last_dataset=last.dataset_id if last else "",
            seed=settings.seed,
            algorithm=settings.algorithm,
            heldout_pairs=counts.heldout,
            fresh_pairs=counts.fresh,
            category_pairs_missing=sum(categories.values()),
            days_left=plan.days_left(self._last_version_at(), now),
        )
        for kind, rows in inputs.missing.items():
            self._metrics.missing.labels(settings.model, kind).set(rows)
        if not asks:
            return False
        if self._remind is not None and plan.pairs > 0 and self._counted_all:
            self._remind(CollectionStatus(settings.model, week, inputs.missing, categories))
        job, why = decide(inputs, self._queue, self._registry.registry, now)
        if job is None:
            kind = why.strip("0123456789")
            if kind != self._why:
                log.info("schedule.waits", why=why)
            self._why = kind
            return False
        await self._ask(job, why)
        return True

    async def _ask(self, job: TrainingRequested, why: str) -> None:
        log.info("schedule.asks", job_id=job.job_id, why=why)
        try:
            await self._log.publish(TRAINING_JOBS, key=job.job_id, event=job, event_id=job.job_id)
        except LogUnavailable as error:
            log.warning(
                Unavailable.kafka, during="job_request", job_id=job.job_id, error=str(error)
            )

    def _last_version_at(self) -> datetime | None:
        """When the newest version of new data was registered; None before the first."""
        versions = self._registry.registry.versions(self._settings.model)
        times = [
            one.record.created_at
            for one in versions
            if isinstance(one.record, VersionRecord) and not one.record.rebases
        ]
        return max(times, default=None)

    async def _counted(self, trained: Offsets, newest: Offsets, monday: date) -> PairCounts:
        """Count the pairs, in a thread: there may be millions."""
        now, of = self._clock.monotonic(), (trained, newest, monday)
        if self._counts is not None and of == self._counts_of and now < self._recount_at:
            return self._counts
        self._counted_all = self.age_s() <= WHOLE_S
        async with self._counting:
            self._pairs.forget(trained)
            self._counts = await asyncio.to_thread(self._pairs.counts, newest, monday)
        self._counts_of = of
        ended = self._clock.monotonic()
        self._recount_at = ended + RECOUNT_REST * (ended - now)
        return self._counts

    def _trained(self, snapshots: list[Manifest]) -> Offsets:
        """Where the pairs end that a version was made of; a job without a version uses none up."""
        versions = self._registry.registry.versions(self._settings.model)
        used = {
            version.record.dataset.dataset_id
            for version in versions
            if isinstance(version.record, VersionRecord)
        }
        for manifest in reversed(snapshots):
            if manifest.dataset_id in used:
                return manifest.offsets
        return {}

    async def _known_snapshots(self) -> list[Manifest]:
        now = self._clock.monotonic()
        if now - self._looked_at >= LOOK_INTERVAL_S:
            self._snapshots = await asyncio.to_thread(
                self._store.snapshots, self._settings.model, TrainingMethod.dpo
            )
            self._looked_at = now
        return self._snapshots
