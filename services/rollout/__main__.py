"""Wires the rollout service: settings, followers, controller, API."""

from __future__ import annotations

import os
import socket

import aiohttp
import uvloop
from prometheus_client import CollectorRegistry

from services.rollout.access import Access
from services.rollout.agents import Agents
from services.rollout.api import RolloutApi
from services.rollout.audit import AuditLog
from services.rollout.console.operator_actions import OperatorActions
from services.rollout.console.operator_views import OperatorViews
from services.rollout.controller import Controller, ControllerPolicy
from services.rollout.daily_scores import DailyScores
from services.rollout.decision_log import DecisionLog
from services.rollout.decision_spans import DecisionSpans
from services.rollout.errors import BadStrategy
from services.rollout.evaluations import Evaluations
from services.rollout.evidence_store import EvidenceStore
from services.rollout.leadership import DecisionLogFollower, Leadership
from services.rollout.live_figures import LiveFigures
from services.rollout.metrics import RolloutMetrics
from services.rollout.prometheus import Prometheus, PrometheusAccess
from services.rollout.registrations import Registrations
from services.rollout.routes import create_app, guarded
from services.rollout.settings import RolloutSettings
from services.rollout.shadow_results import ShadowResults
from services.rollout.strategy_files import StrategyFolder, read
from services.rollout.webhooks import announce as announce_to
from shared.clock import SystemClock
from shared.contracts.events.rollouts import Decision
from shared.http.local_guard import with_local_guard
from shared.http.operations import OperationsApp
from shared.http.server import serve, stop_on_signals
from shared.http.webhooks import Webhooks
from shared.kafka.encrypted_log import encrypting
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.keys import KeyRing
from shared.observability.disk import watch_disk
from shared.observability.health import Health
from shared.observability.logging import configure_logging
from shared.observability.trace_export import spans_of
from shared.registry.connection import RedisCluster, connect_redis, refuse_cluster
from shared.registry.follow import KeyFollower, RegistryFollower
from shared.registry.view import RoutingView
from shared.service.background import BackgroundTasks
from shared.service.readiness import catch_up, follow_user_keys, freshness

SOURCE = "/ratchet/rollout"
LINGER_MS = 0
"""A decision travels alone; waiting for company would only delay it."""
CATCH_UP_S = 5.0
STUCK_AFTER_S = 60.0
REDIS_TIMEOUT_S = 1.0
FINISH_TIMEOUT_S = 5.0


async def run(settings: RolloutSettings) -> None:
    """Control rollouts until SIGTERM or SIGINT."""
    stop = stop_on_signals()
    clock = SystemClock()
    registry = CollectorRegistry()
    metrics = RolloutMetrics(registry)
    watch_disk(registry, settings)
    brokers = KafkaLog(
        KafkaConnection.of(settings),
        source=SOURCE,
        client_id="ratchet-rollout",
        linger_ms=LINGER_MS,
    )
    log = encrypting(brokers, settings, source=SOURCE, registry=registry)
    await log.start()
    spans = spans_of("rollout")
    keys = KeyRing(required=settings.profile != "local")
    decision_log = DecisionLog()
    decisions, versions = DecisionLogFollower(log, decision_log), RegistryFollower(log)
    redis = connect_redis(
        settings,
        socket_timeout=REDIS_TIMEOUT_S,
        socket_connect_timeout=REDIS_TIMEOUT_S,
    )
    await refuse_cluster(redis)
    async with aiohttp.ClientSession() as session, redis:
        agents = Agents(session, settings.agents, settings.score_authorization)
        evaluations = Evaluations(log, versions.registry, agents, clock)
        shadow_results = ShadowResults(log, evaluations.take)
        daily_scores = DailyScores(log)
        followers = {
            "rollouts": decisions,
            "versions": versions,
            "keys": KeyFollower(log, keys),
            "shadow results": shadow_results,
        }
        webhooks = Webhooks(
            session, settings.webhook_urls, settings.webhook_secret, clock, metrics.webhooks
        )
        decision_spans = DecisionSpans(spans, versions.registry)

        def announce(decision: Decision) -> None:
            announce_to(webhooks, decision)
            decision_spans.announce(decision)

        prometheus = _prometheus(session, settings)
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
            view=RoutingView(redis, settings.redis_seal(), refused=metrics.states_refused.inc),
            prometheus=prometheus,
            agents=agents,
            shadow_results=shadow_results,
            evidence_store=EvidenceStore(settings.data_dir / "rollout"),
            metrics=metrics,
            clock=clock,
            announce=announce,
        )
        metrics.read_at_scrape(controller.idle_s)
        health = Health()
        for name, follower in followers.items():
            health.ready(name, freshness(follower.age_s))
        follow_user_keys(log.issuer, health, clock)
        health.progress("controller", controller.idle_s, STUCK_AFTER_S)
        api = RolloutApi(
            controller,
            decision_log,
            versions.registry,
            keys,
            StrategyFolder(settings.strategy.parent),
            AuditLog(log),
            Registrations(log, versions.registry, clock, agents.bases),
            evaluations,
            LiveFigures(daily_scores, prometheus, clock),
        )
        views = OperatorViews(log, versions.registry, decision_log, clock)
        pseudonym = settings.user_pseudonyms().of
        actions = OperatorActions(log, versions.registry, clock, pseudonym=pseudonym)
        access = Access(settings.tenants_of_models(), log, versions.registry, decision_log)
        console = create_app(api, views, actions, access)
        app = OperationsApp(health, registry, guarded(console, api))
        background = BackgroundTasks()
        for name, follower in followers.items():
            background.start(name, follower.run())
        background.start("evaluations", evaluations.run())
        background.start("daily scores", daily_scores.run())
        if settings.webhook_urls:
            background.start("webhooks", webhooks.run())
        health.alive("tasks", background.ended)

        async def control() -> None:
            """Run the control loop once every earlier decision was read back."""
            await catch_up(
                (decisions, versions), stop, timeout_s=CATCH_UP_S, waiting=controller.alive
            )
            await controller.run(stop)

        background.start("controller", control())
        try:
            await serve(
                with_local_guard(app, settings),
                host=settings.host,
                port=settings.port,
                stop=stop,
                operations_port=settings.operations_port,
            )
        finally:
            stop.set()
            # The controller hands over its lead, which it needs the followers for.
            await background.finish(FINISH_TIMEOUT_S, wait_for=("controller",))
            await log.stop()
            spans.close()


def _prometheus(session: aiohttp.ClientSession, settings: RolloutSettings) -> Prometheus:
    return Prometheus(
        session,
        settings.prometheus_url,
        router_matchers=settings.router_matchers,
        access=PrometheusAccess(
            method=settings.prometheus_method,
            token_file=settings.prometheus_token_file,
            username=settings.prometheus_username,
            password_file=settings.prometheus_password_file,
            headers_file=settings.prometheus_headers_file,
            ca_file=settings.prometheus_ca_file,
        ),
    )


def main() -> None:
    settings = RolloutSettings.load()
    configure_logging("rollout", settings.log_level)
    try:
        read(settings.strategy)
    except BadStrategy as error:
        raise SystemExit(f"RATCHET_ROLLOUT_STRATEGY: {error.detail}") from None
    try:
        uvloop.run(run(settings))
    except RedisCluster as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
