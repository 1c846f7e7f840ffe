"""Starts the aggregator: settings, clients, worker, operations server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import structlog
import uvloop

from services.aggregator.codec import SOURCE
from services.aggregator.errors import AggregatorError
from services.aggregator.faust_app import FaustSettings
from services.aggregator.fold import FoldRules
from services.aggregator.metrics import AggregatorMetrics
from services.aggregator.personal_texts import PersonalTexts
from services.aggregator.row_database import MIB
from services.aggregator.session_lease import SessionLease
from services.aggregator.settings import AggregatorSettings
from services.aggregator.stall_guard import StallGuard
from services.aggregator.worker import Worker
from services.aggregator.writer import KafkaWriter, Writer
from shared.clock import Clock, SystemClock
from shared.credentials import CredentialsUnreadable
from shared.garbage import spare_collector
from shared.http.detector import detector_of
from shared.http.operations import OperationsApp
from shared.http.server import serve, stop_on_signals
from shared.kafka.deadletters import DeadLetters
from shared.kafka.encrypted_log import EncryptingLog, issuer_of
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection, KafkaCredentialsUnreadable
from shared.observability.disk import watch_disk
from shared.observability.health import Health
from shared.observability.logging import configure_logging
from shared.observability.trace_export import spans_of
from shared.redaction import Redaction

log = structlog.get_logger(__name__)

EXIT_FAILED = 70
"""Exit status of a worker that ended itself so that it writes nothing wrong; start it again."""
LOOP_LIMIT_S = 30.0
TICK_LIMIT_S = 60.0


def die(reason: str) -> None:
    """End the process without another write."""
    log.error("worker.ended", reason=reason, remedy="start it again; it goes on where it was")
    os._exit(EXIT_FAILED)


def as_is(writer: KafkaWriter) -> Writer:
    """The writer itself."""
    return writer


async def run(
    settings: AggregatorSettings,
    *,
    through: Callable[[KafkaWriter], Writer] = as_is,
    clock: Clock | None = None,
) -> None:
    """Serve until a signal. All of the worker's writes go `through` what is made of its writer."""
    clock = clock or SystemClock()
    metrics = AggregatorMetrics()
    watch_disk(metrics.registry, settings)
    stall_guard = StallGuard(
        settings.session_timeout_s / 2,
        on_stall=lambda stalled_s: die(f"the loop stood still for {stalled_s:.1f} s"),
    )
    lease = SessionLease(settings.session_timeout_s)
    event_log = KafkaLog(
        KafkaConnection.of(settings), source=SOURCE, client_id="ratchet-aggregator"
    )
    keys = issuer_of(event_log, settings)
    texts = PersonalTexts(keys) if keys else None
    detector = detector_of(settings, metrics.registry)
    spans = spans_of("aggregator")
    writer = KafkaWriter(KafkaConnection.of(settings), guard=stall_guard.check, lease=lease)
    worker = Worker(
        FaustSettings(
            connection=KafkaConnection.of(settings),
            app_id=settings.app_id,
            session_timeout_s=settings.session_timeout_s,
            data_dir=settings.data_dir,
            state_cache_mib=settings.state_cache_mib,
        ),
        rules=FoldRules(
            horizon_s=settings.horizon_days * 86_400,
            unknown_trace_s=settings.unknown_trace_s,
            tenant_bytes=settings.tenant_max_mib * MIB,
            scores_per_day=settings.scores_per_day,
            segments=frozenset(settings.segments),
            categories=frozenset(settings.categories),
            locales=frozenset(settings.locales),
            signals_judge=settings.signals_judge,
            signals_teach=settings.signals_teach,
            prompt_ignores=settings.prompt_ignores,
        ),
        writer=through(writer),
        partitions=writer.partitions,
        dead_letters=DeadLetters(
            EncryptingLog(event_log, keys, source=SOURCE) if keys else event_log,
            service="aggregator",
            redact=Redaction(detector),
            metrics=metrics.registry,
        ),
        metrics=metrics,
        stall_guard=stall_guard,
        lease=lease,
        clock=clock,
        spans=spans,
        die=die,
        texts=texts,
    )
    health = Health()
    health.progress("loop", stall_guard.idle_s, LOOP_LIMIT_S)
    health.progress("ticks", worker.idle_s, TICK_LIMIT_S)
    health.ready("group", lambda: None if worker.joined() else "waiting for an assignment")
    stop = stop_on_signals()
    serving = asyncio.create_task(
        serve(
            OperationsApp(health, metrics.registry),
            host=settings.host,
            port=settings.port,
            stop=stop,
            operations_port=settings.operations_port,
        )
    )
    await event_log.start()
    await writer.start()
    await worker.start()
    await stop.wait()
    await worker.stop()
    await writer.stop()
    if texts is not None:
        await texts.close()
    await event_log.stop()
    if detector is not None:
        await detector.close()
    await serving
    spans.close()


def main() -> None:
    settings = AggregatorSettings.load()
    configure_logging("aggregator")
    spare_collector()
    try:
        uvloop.run(run(settings))
    except (AggregatorError, CredentialsUnreadable, KafkaCredentialsUnreadable) as error:
        die(str(error))


if __name__ == "__main__":
    main()
