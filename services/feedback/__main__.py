"""Wires the feedback service: settings, log, followers, intake, application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import uvloop
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from services.feedback.api import FeedbackApi, Limits, WithOps, create_app
from services.feedback.circuit_breaker import CircuitBreaker
from services.feedback.comparisons import Comparisons
from services.feedback.intake import GROUP, INTAKE_MODELS, Intake
from services.feedback.metrics import Metrics
from services.feedback.open_comparisons import RedisComparisons
from services.feedback.publisher import SOURCE, FeedbackPublisher
from services.feedback.router_client import RouterClient, router_session
from services.feedback.settings import FeedbackSettings
from shared.clock import SystemClock
from shared.contracts.events.feedback import FeedbackSubmitted
from shared.contracts.topics import intake_topic
from shared.garbage import spare_collector
from shared.kafka.consumer import ConsumerLoop
from shared.kafka.deadletters import DeadLetters
from shared.kafka.producer import KafkaLog
from shared.keys import KeyRing
from shared.observability.health import Health, OpsApp, serve, stop_on_signals
from shared.observability.logging import configure_logging
from shared.redaction.redactor import Redactor
from shared.registry.follow import KeyFollower, RegistryFollower, RoutingFollower

STALE_AFTER_S = 15.0
"""Not ready once the topics were not read to their end for so long: Kafka is away."""
STUCK_AFTER_S = 120.0
REDIS_TIMEOUT_S = 2.0
FINISH_TIMEOUT_S = 3.0


async def run(settings: FeedbackSettings) -> None:
    """Serve until told to stop."""
    stop = stop_on_signals()
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    clock = SystemClock()
    redact = Redactor().text
    log = KafkaLog(settings.kafka_bootstrap, source=SOURCE, client_id="ratchet-feedback")
    await log.start()
    publisher = FeedbackPublisher(
        log,
        CircuitBreaker(max_waiting=settings.max_waiting),
        metrics,
        clock,
        timeout_s=settings.append_timeout_s,
    )
    metrics.waiting.set_function(lambda: publisher.waiting)
    keys = KeyRing(required=settings.profile != "local")
    versions, routing = RegistryFollower(log), RoutingFollower(log)
    followers = {"versions": versions, "rollouts": routing, "keys": KeyFollower(log, keys)}
    intake = Intake(publisher, metrics, redact=redact)
    loop = ConsumerLoop(
        settings.kafka_bootstrap,
        group=GROUP,
        handler=intake.handle,
        models=INTAKE_MODELS,
        dead_letters=DeadLetters(log, service="feedback", redact=redact, metrics=registry),
        topics=[intake_topic(tenant) for tenant in settings.tenants],
        concurrency=settings.intake_concurrency,
        default_type=FeedbackSubmitted.ce_type,
    )
    health = Health()
    health.ready("log", lambda: "the event log is away" if publisher.refuses() else None)
    for name, follower in followers.items():
        health.ready(name, freshness(follower.age_s))
    redis = Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
        settings.redis_url,
        socket_timeout=REDIS_TIMEOUT_S,
        socket_connect_timeout=REDIS_TIMEOUT_S,
    )
    async with router_session(settings.max_comparisons) as session, redis:
        comparisons = Comparisons(
            router=RouterClient(session, settings.router_url, timeout_s=settings.router_timeout_s),
            store=RedisComparisons(redis, ttl_s=settings.comparison_ttl_s),
            publisher=publisher,
            routing=routing.table,
            registry=versions.registry,
            metrics=metrics,
            clock=clock,
            redact=redact,
            anonymous_votes=settings.takes_anonymous_votes,
            max_asking=settings.max_comparisons,
        )
        api = FeedbackApi(
            publisher=publisher,
            comparisons=comparisons,
            keys=keys,
            metrics=metrics,
            clock=clock,
            redact=redact,
            limits=Limits(
                settings.max_body_bytes, settings.max_batch_bytes, settings.body_timeout_s
            ),
        )
        app = WithOps(create_app(api, metrics), OpsApp(health, registry))
        following = [asyncio.create_task(one.run(), name=name) for name, one in followers.items()]
        taking_in: list[asyncio.Task[None]] = []
        if settings.intake:
            health.progress("intake", loop.idle_s, STUCK_AFTER_S)
            taking_in.append(asyncio.create_task(loop.run(stop), name="intake"))
        health.alive("tasks", lambda: ended(following + taking_in))
        spare_collector()
        try:
            await serve(app, host=settings.host, port=settings.port, stop=stop)
        finally:
            stop.set()
            for task in following:
                task.cancel()
            await finish(following + taking_in)
            await log.stop()


def freshness(age_s: Callable[[], float]) -> Callable[[], str | None]:
    """A readiness check: the topic was read to its end a moment ago."""

    def check() -> str | None:
        age = age_s()
        return (
            None if age <= STALE_AFTER_S else f"not read to the end for {age:.0f} s; is Kafka up?"
        )

    return check


def ended(tasks: list[asyncio.Task[None]]) -> str | None:
    """A liveness check: nothing that runs for ever has ended."""
    names = [task.get_name() for task in tasks if task.done()]
    return f"ended: {', '.join(names)}; the log says why" if names else None


async def finish(tasks: list[asyncio.Task[None]]) -> None:
    """Let tasks end by themselves for a bounded time, then end them."""
    _, running = await asyncio.wait(tasks, timeout=FINISH_TIMEOUT_S)
    for task in running:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    settings = FeedbackSettings.load()
    configure_logging("feedback", settings.log_level)
    uvloop.run(run(settings))


if __name__ == "__main__":
    main()
