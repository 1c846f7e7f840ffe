"""Wires training: settings, log, followers, scheduler, lease, worker, operations routes."""

from __future__ import annotations

import contextlib

import aiohttp
import uvloop
from prometheus_client import CollectorRegistry

from services.training.dataset_store import DatasetStore
from services.training.erasure import DatasetEraser
from services.training.errors import JobsFolderTaken
from services.training.fresh_scorer import FreshScorer
from services.training.jobs import JobQueue
from services.training.metrics import TrainingMetrics
from services.training.pair_index import PairIndex
from services.training.reminder_sender import ReminderSender
from services.training.runner import Runner
from services.training.scheduler import Scheduler
from services.training.settings import TrainingSettings
from services.training.worker import TrainingWorker
from services.training.workspace import take
from shared.clock import Clock, SystemClock
from shared.contracts.topics import TRAINING_JOBS
from shared.http.detector import detector_of
from shared.http.operations import OperationsApp
from shared.http.reward_scores import RewardScores
from shared.http.server import serve, stop_on_signals
from shared.http.webhooks import Webhooks
from shared.kafka.deadletters import DeadLetters
from shared.kafka.encrypted_log import encrypting
from shared.kafka.lease import KafkaLease
from shared.kafka.log import EventLog
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.observability.disk import Directory, watch_disk
from shared.observability.health import Health
from shared.observability.logging import configure_logging
from shared.observability.trace_export import spans_of
from shared.redaction import Redaction
from shared.registry.follow import RegistryFollower
from shared.service.background import BackgroundTasks
from shared.service.readiness import follow_user_keys, freshness

SOURCE = "/ratchet/training"
LEASE_GROUP = "ratchet.training"
STALE_AFTER_S = 30.0
"""Not ready once a topic was not read to its end for so long: Kafka is unavailable."""
STUCK_AFTER_S = 120.0
FINISH_TIMEOUT_S = 25.0


async def run(settings: TrainingSettings) -> None:
    """Do jobs until told to stop."""
    stop = stop_on_signals()
    clock, registry = SystemClock(), CollectorRegistry()
    metrics = TrainingMetrics(registry)
    stores = {
        Directory.datasets: settings.datasets_uri,
        Directory.adapters: settings.adapters_uri,
    }
    watch_disk(registry, settings, stores)
    spans = spans_of("training")
    connection = KafkaConnection.of(settings)
    brokers = KafkaLog(connection, source=SOURCE, client_id="ratchet-training")
    log = encrypting(brokers, settings, source=SOURCE, registry=registry)
    await log.start()
    versions, queue = RegistryFollower(log), JobQueue()
    store = DatasetStore(settings.datasets_uri)
    detector = detector_of(settings, registry)
    redact = Redaction(detector)
    runner = Runner(
        event_log=log,
        registry=versions,
        store=store,
        settings=settings,
        metrics=metrics,
        clock=clock,
        spans=spans,
        redact=redact,
    )
    session = aiohttp.ClientSession()
    webhooks = Webhooks(
        session, settings.webhook_urls, settings.webhook_secret, clock, metrics.webhooks
    )
    reminders = ReminderSender(log, webhooks, clock) if settings.webhook_urls else None
    index = PairIndex.of(settings)
    fresh = _fresh_scorer(settings, log, session, metrics, clock, index)
    scheduler = Scheduler(
        event_log=log,
        queue=queue,
        registry=versions,
        store=store,
        settings=settings,
        metrics=metrics,
        clock=clock,
        index=index,
        fresh=fresh,
        remind=reminders.note if reminders else None,
    )
    eraser = DatasetEraser(log, versions, store, runner.jobs, clock)
    letters = DeadLetters(log, service="training", redact=redact, metrics=registry, clock=clock)
    lease = KafkaLease(
        connection, group=LEASE_GROUP, topic=TRAINING_JOBS, session_s=settings.lease_s
    )
    worker = TrainingWorker(
        event_log=log,
        queue=queue,
        registry=versions,
        runner=runner,
        scheduler=scheduler,
        eraser=eraser,
        dead_letters=letters,
        lease=lease,
        metrics=metrics,
        settings=settings,
    )
    health = Health()
    health.progress("jobs", runner.idle_s, STUCK_AFTER_S)
    follow_user_keys(log.issuer, health, clock)
    for name, age_s in (("jobs", worker.age_s), ("versions", versions.age_s)):
        health.ready(f"{name}_topic", freshness(age_s, STALE_AFTER_S))
    health.note("lease", worker.standby)
    leasing, background = BackgroundTasks(), BackgroundTasks()
    leasing.start("lease", lease.run())
    background.start("versions", versions.run())
    background.start("jobs", worker.follow())
    background.start("pairs", scheduler.count())
    background.start("pair_index", scheduler.keep())
    background.start("erasures", eraser.follow())
    background.start("work", worker.work())
    if fresh:
        background.start("fresh_votes", fresh.run())
    if reminders:
        background.start("reminders", reminders.run())
        background.start("webhooks", webhooks.run())
    health.alive("tasks", lambda: background.ended() or leasing.ended())
    try:
        await serve(
            OperationsApp(health, registry),
            host=settings.host,
            port=settings.port,
            stop=stop,
            operations_port=settings.operations_port,
        )
    finally:
        background.cancel()
        await background.finish(FINISH_TIMEOUT_S)
        leasing.cancel()  # given back once nothing runs any more
        await leasing.finish(FINISH_TIMEOUT_S)
        index.close()
        await log.stop()
        await session.close()
        if detector is not None:
            await detector.close()
        spans.close()


def _fresh_scorer(
    settings: TrainingSettings,
    log: EventLog,
    session: aiohttp.ClientSession,
    metrics: TrainingMetrics,
    clock: Clock,
    index: PairIndex,
) -> FreshScorer | None:
    if not settings.inference_url:
        return None
    scores = RewardScores(session, settings.inference_url, settings.score_authorization)
    minimum = settings.reward_fresh_votes
    return FreshScorer(log, scores, metrics, clock, minimum, before=index.verdicts())


def main() -> None:
    settings = TrainingSettings.load()
    configure_logging("training", settings.log_level)
    try:
        with contextlib.suppress(KeyboardInterrupt), take(settings.data_dir):
            uvloop.run(run(settings))
    except JobsFolderTaken as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
