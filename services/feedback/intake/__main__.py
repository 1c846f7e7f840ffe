"""Wires the intake: settings, log, quotas, consumer loop, operations routes.

It runs apart from the HTTP API, so that no batch, however far it inflates, takes the API away. The
kernel refuses memory beyond RATCHET_INTAKE_MEMORY_MIB; a process that ends that way is started again by
its keeper and steps over the record that ended it twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys

import uvloop
from prometheus_client import CollectorRegistry

from services.feedback.circuit_breaker import CircuitBreaker
from services.feedback.intake.handler import GROUP, INTAKE_MODELS, Intake
from services.feedback.intake.settings import IntakeSettings
from services.feedback.metrics import FeedbackMetrics
from services.feedback.publisher import SOURCE, FeedbackPublisher
from shared.clock import SystemClock
from shared.contracts.events.feedback import FeedbackSubmitted
from shared.contracts.topics import intake_topic
from shared.credentials import CredentialsUnreadable
from shared.garbage import spare_collector
from shared.http.detector import detector_of
from shared.http.operations import OperationsApp
from shared.http.server import serve, stop_on_signals
from shared.kafka.consumer import ConsumerLoop
from shared.kafka.crash_marker import CrashMarker
from shared.kafka.deadletters import DeadLetters
from shared.kafka.encrypted_log import encrypting
from shared.kafka.lag import ConsumerLag
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.observability.disk import watch_disk
from shared.observability.health import Health
from shared.observability.logging import configure_logging
from shared.observability.trace_export import spans_of
from shared.quotas import Quotas, RateLimits, RedisCounts
from shared.redaction import Redaction
from shared.registry.connection import RedisCluster, connect_redis, refuse_cluster
from shared.service.readiness import follow_user_keys
from shared.settings import EXIT_CONFIGURATION

MARKER = "intake-at.json"
STUCK_AFTER_S = 120.0
REDIS_TIMEOUT_S = 2.0


async def run(settings: IntakeSettings) -> None:
    """Consume until told to stop.

    Raises:
        ExceptionGroup: the loop ended by itself, as where memory ran out; a keeper starts it again.

    """
    stop = stop_on_signals()
    registry, clock = CollectorRegistry(), SystemClock()
    spans = spans_of("intake")
    detector = detector_of(settings, registry)
    redact = Redaction(detector)
    metrics = FeedbackMetrics(registry)
    watch_disk(registry, settings)
    brokers = KafkaLog(KafkaConnection.of(settings), source=SOURCE, client_id="ratchet-intake")
    log = encrypting(brokers, settings, source=SOURCE, registry=registry)
    breaker = CircuitBreaker(max_waiting=settings.max_waiting)
    publisher = FeedbackPublisher(log, breaker, metrics, clock, timeout_s=settings.append_timeout_s)
    metrics.waiting.set_function(lambda: publisher.waiting)
    redis = connect_redis(
        settings, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S
    )
    quotas = Quotas(
        key=lambda _: RateLimits(),
        tenant=RateLimits(settings.tenant_events_per_minute),
        store=RedisCounts(redis, "feedback"),
    )
    intake = Intake(
        publisher,
        metrics,
        redact=redact,
        clock=clock,
        quotas=quotas,
        rules=settings.rules,
        spans=spans,
    )
    loop = ConsumerLoop(
        KafkaConnection.of(settings),
        group=GROUP,
        handler=intake.handle,
        models=INTAKE_MODELS,
        dead_letters=DeadLetters(log, service="feedback", redact=redact, metrics=registry),
        topics=[intake_topic(tenant) for tenant in settings.tenants],
        concurrency=settings.concurrency,
        default_type=FeedbackSubmitted.ce_type,
        marker=CrashMarker(settings.data_dir / MARKER),
    )
    registry.register(ConsumerLag(loop.behind))
    health = Health()
    health.ready("log", lambda: "the event log is unavailable" if publisher.refuses() else None)
    health.progress("intake", loop.idle_s, STUCK_AFTER_S)
    with contextlib.suppress(OSError):
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    async with redis:
        await refuse_cluster(redis)
        await log.start()
        follow_user_keys(log.issuer, health, clock)
        spare_collector()
        async with asyncio.TaskGroup() as group:
            counting = group.create_task(quotas.run())
            group.create_task(loop.run(stop))
            app = OperationsApp(health, registry)
            await serve(
                app,
                host=settings.host,
                port=settings.port,
                operations_port=settings.operations_port,
                stop=stop,
            )
            stop.set()
            counting.cancel()
        await log.stop()
        spans.close()
        if detector is not None:
            await detector.close()


def main() -> None:
    settings = IntakeSettings.load()
    configure_logging("feedback", settings.log_level)
    most = settings.memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    try:
        uvloop.run(run(settings))
    except CredentialsUnreadable as error:
        print(error, file=sys.stderr)
        raise SystemExit(EXIT_CONFIGURATION) from None
    except RedisCluster as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
