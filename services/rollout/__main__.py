"""Wires the rollout service: settings, followers, controller, API."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

import aiohttp
import uvloop
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from services.rollout.agents import Agents
from services.rollout.api import RolloutApi, WithOps, create_app
from services.rollout.controller import Controller, ControllerPolicy
from services.rollout.decision_log import DecisionLog
from services.rollout.errors import BadStrategy
from services.rollout.evidence_store import EvidenceStore
from services.rollout.leadership import DecisionLogFollower, Leadership
from services.rollout.metrics import Metrics
from services.rollout.prometheus import Prometheus
from services.rollout.settings import RolloutSettings
from services.rollout.strategy import read
from shared.clock import SystemClock
from shared.kafka.log import LogUnavailable
from shared.kafka.producer import KafkaLog
from shared.keys import KeyRing
from shared.observability.health import Health, OpsApp, serve, stop_on_signals
from shared.observability.logging import configure_logging
from shared.registry.follow import KeyFollower, RegistryFollower
from shared.registry.view import RoutingView

SOURCE = "/ratchet/rollout"
LINGER_MS = 0
"""A decision travels alone; waiting for company would only delay it."""
CATCH_UP_S = 5.0
STALE_AFTER_S = 15.0
"""Not ready once the topics were not read to their end for so long: Kafka is away."""
STUCK_AFTER_S = 60.0
REDIS_TIMEOUT_S = 1.0
FINISH_TIMEOUT_S = 5.0


async def run(settings: RolloutSettings) -> None:
    """Control rollouts until told to stop."""
    stop = stop_on_signals()
    clock = SystemClock()
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    log = KafkaLog(
        settings.kafka_bootstrap,
        source=SOURCE,
        client_id="ratchet-rollout",
        linger_ms=LINGER_MS,
    )
    await log.start()
    keys = KeyRing(required=settings.profile != "local")
    decision_log = DecisionLog()
    decisions, versions = DecisionLogFollower(log, decision_log), RegistryFollower(log)
    followers = {"rollouts": decisions, "versions": versions, "keys": KeyFollower(log, keys)}
    redis = Redis.from_url(
        settings.redis_url,
        socket_timeout=REDIS_TIMEOUT_S,
        socket_connect_timeout=REDIS_TIMEOUT_S,
    )
    async with aiohttp.ClientSession() as session, redis:
        holder = f"{socket.gethostname()}:{settings.port}/{os.getpid()}"
        controller = Controller(
            policy=ControllerPolicy(
                strategy=read(settings.strategy),
                auto_start=settings.auto_start,
                look_interval_s=settings.look_interval_s,
                hold_interval_s=settings.hold_interval_s,
                no_data_after_s=settings.no_data_after_s,
                series_grace_s=settings.series_grace_s,
            ),
            leadership=Leadership(log, decisions, redis, clock, holder=holder),
            decision_log=decision_log,
            registry=versions.registry,
            view=RoutingView(redis),
            prometheus=Prometheus(
                session, settings.prometheus_url, router_matchers=settings.router_matchers
            ),
            agents=Agents(session, settings.agents),
            evidence_store=EvidenceStore(settings.data_dir / "rollout"),
            metrics=metrics,
            clock=clock,
        )
        metrics.read_at_scrape(controller.idle_s)
        health = Health()
        for name, follower in followers.items():
            health.ready(name, freshness(follower.age_s))
        health.progress("controller", controller.idle_s, STUCK_AFTER_S)
        api = RolloutApi(
            controller, decision_log, versions.registry, keys, settings.strategy.parent
        )
        app = WithOps(create_app(api), OpsApp(health, registry))
        tasks = [asyncio.create_task(one.run(), name=name) for name, one in followers.items()]
        health.alive("tasks", lambda: ended(tasks))

        async def control() -> None:
            """Decide nothing before all that was decided earlier is known."""
            while not stop.is_set():
                try:
                    for follower in (decisions, versions):
                        await follower.caught_up(CATCH_UP_S)
                    break
                except LogUnavailable:
                    controller.alive()
            await controller.run(stop)

        tasks.append(asyncio.create_task(control(), name="controller"))
        try:
            await serve(app, host=settings.host, port=settings.port, stop=stop)
        finally:
            stop.set()
            await finish(tasks)
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
    """Let the controller leave its place, then end what follows topics for ever."""
    *following, controlling = tasks
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FINISH_TIMEOUT_S):
            await asyncio.wait((controlling,))
    for task in (*following, controlling):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    settings = RolloutSettings.load()
    configure_logging("rollout", settings.log_level)
    try:
        read(settings.strategy)
    except BadStrategy as error:
        raise SystemExit(f"RATCHET_ROLLOUT_STRATEGY: {error.message}") from None
    uvloop.run(run(settings))


if __name__ == "__main__":
    main()
