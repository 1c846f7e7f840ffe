"""`python -m services.router`: settings → clients → application."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections import Counter

import aiohttp
import structlog
import uvloop
from prometheus_client import CollectorRegistry

from services.router.answer_headers import EXPOSED_HEADERS
from services.router.app import Gateway
from services.router.candidate_breaker import CandidateBreaker
from services.router.client_ids import ClientIds
from services.router.engines import Engines
from services.router.fields import FieldRules
from services.router.filter_rules import FilterRules
from services.router.health import WHOLE_WITHIN_S, add_checks
from services.router.id_claims import RedisIdClaims
from services.router.identity import IdentityRules
from services.router.instance import (
    SPOOLS,
    FolderTaken,
    RouterInstance,
    bytes_of,
    ship_left_behind,
    take,
)
from services.router.interactions import Interactions
from services.router.latency_limits import LatencyLimits
from services.router.media import MediaUploads
from services.router.metrics import RouterMetrics
from services.router.mirror import SOURCE, Mirror
from services.router.moderated import ModeratedProxy
from services.router.moderation_endpoint import ModerationEndpoint
from services.router.output_filter import OutputFilter
from services.router.proxy import Deadlines, Proxy
from services.router.series_lifecycle import SeriesLifecycle
from services.router.settings import RouterSettings
from services.router.sources import Sources
from services.router.spool import Spool
from services.router.spool_shipper import SpoolShipper
from services.router.state import RouterState
from services.router.supervisor import ProcessSupervisor, stop_at_end_of_input
from services.router.unchecked_calls import UncheckedCalls
from services.router.unchecked_journal import UncheckedJournal
from services.router.vote_exchange import VoteExchange
from services.router.votes import VoteLimits
from shared.clock import SystemClock
from shared.garbage import spare_collector
from shared.http.asgi import AsgiApp
from shared.http.cors import with_cors
from shared.http.detector import detector_of
from shared.http.local_guard import with_local_guard
from shared.http.operations import OperationsApp
from shared.http.server import serve, stop_on_signals
from shared.kafka.deadletters import DeadLetters
from shared.kafka.encrypted_log import encrypting
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.keys import KeyRing
from shared.media_store import MediaStore
from shared.observability.disk import Directory, watch_disk
from shared.observability.health import Health
from shared.observability.logging import configure_logging
from shared.observability.trace_export import spans_of
from shared.quotas import Quotas, RedisCounts, inference_limits
from shared.redaction import Redaction, Redactor
from shared.registry.connection import RedisCluster, connect_redis, refuse_cluster
from shared.registry.routing import RoutingState
from shared.registry.view import RoutingView
from shared.service.background import BackgroundTasks
from shared.service.readiness import follow_user_keys

log = structlog.get_logger(__name__)

FINISH_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 35.0
"""For a process's end, its spool and media apart: open requests, background tasks, producer."""
GATHER_S = 0.1
"""How long interaction events gather before a batch of them is shipped."""


def client_session() -> aiohttp.ClientSession:
    """A session for the moderation endpoint, which bounds what it runs.

    With aiohttp's own bound of 100 connections a question could spend its deadline waiting for one,
    and an answer would be refused that nobody had looked at.
    """
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


def moderated(
    app: AsgiApp,
    settings: RouterSettings,
    services: Engines,
    keys: KeyRing,
    quotas: Quotas,
    output_filter: OutputFilter,
    state: RouterState,
    identity: IdentityRules,
) -> AsgiApp:
    """The application with moderated generation, where inference services are named for it."""
    if not settings.moderation_url:
        return app
    return ModeratedProxy(
        app,
        services=services,
        keys=keys,
        quotas=quotas,
        bounds=settings.answer_bounds,
        output_filter=output_filter,
        writer_of=state.writer_of,
        identity=identity,
        limit=settings.max_body_bytes,
    )


async def run(settings: RouterSettings, instance: RouterInstance, rules: FilterRules) -> None:
    """Serve until a signal says stop, then ship what the spool holds for a bounded time."""
    stop = stop_on_signals()
    if instance.shares_port:
        stop_at_end_of_input(stop)
    clock = SystemClock()
    spool = Spool(instance.directory / "spool", limit_bytes=settings.spool_limit_bytes)
    redactor = Redactor()
    spans = spans_of("router")
    process = secrets.token_hex(4)
    latency = LatencyLimits(settings.latency_limits)
    metrics = RouterMetrics(settings.segments, router=process, limits=latency.edges)
    series = SeriesLifecycle(metrics, clock, grace_s=settings.series_grace_s)
    registry = CollectorRegistry()
    registry.register(metrics)
    watch_disk(registry, settings, {Directory.media: settings.media_uri})
    brokers = KafkaLog(KafkaConnection.of(settings), source=SOURCE, client_id="router")
    event_log = encrypting(brokers, settings, source=SOURCE, registry=registry)
    detector = detector_of(settings, registry)
    redact = Redaction(detector, redactor.text)
    mirror = Mirror(event_log, clock, registry, redact, stale_after_s=settings.stale_after_s)
    media = MediaUploads(MediaStore(settings.media_uri), registry) if settings.media_uri else None
    journal = UncheckedJournal(instance.directory)
    unchecked = UncheckedCalls(detector, journal) if detector is not None else None
    interactions = Interactions(
        spool, redactor, mirror, settings.user_pseudonyms(), media, unchecked
    )
    interactions.lost += journal.recover(spool)
    breaker = CandidateBreaker(clock, failures=settings.breaker_failures)

    def changed(state: RoutingState) -> None:
        series.follow(state)
        mirror.follow(state)

    state = RouterState(
        clock,
        stale_after_s=settings.stale_after_s,
        assigned=metrics.assigned,
        changed=changed,
        refused=breaker.refuses,
        secret=settings.assignment_secret(),
    )
    keys = KeyRing(required=settings.profile != "local")
    redis = connect_redis(settings, socket_connect_timeout=2, health_check_interval=5)
    await refuse_cluster(redis)
    votes = VoteLimits(settings.vote_caps)
    view = RoutingView(redis, settings.redis_seal(), refused=metrics.state_refused)
    sources = Sources(state, keys, event_log, view, clock, refused=metrics.state_refused)
    dead_letters = DeadLetters(
        event_log,
        service="router",
        redact=redact,
        metrics=registry,
    )
    shipper = SpoolShipper(spool, event_log, dead_letters, gather_s=GATHER_S)
    recovered = Counter[str](dict.fromkeys(SPOOLS, 0))
    unshipped = list(instance.left_behind())
    left_behind = asyncio.create_task(
        ship_left_behind(
            unshipped,
            lambda spool: SpoolShipper(spool, event_log, dead_letters),
            settings.spool_limit_bytes,
            recovered,
        )
    )
    recovered["unchecked"] += journal.recovered
    metrics.read_at_scrape(
        spool_bytes=lambda: spool.bytes + bytes_of(unshipped),
        events_lost=lambda: interactions.lost + shipper.refused,
        events_recovered=lambda: {**recovered, "spool": recovered["spool"] + spool.recovered},
        state_age_s=state.age_s,
        breaker_open=breaker.is_open,
    )
    identity = IdentityRules(settings.user_sources, settings.nobody)
    quotas = Quotas(
        key=inference_limits(settings.key_limits),
        tenant=settings.tenant_limits,
        # With one key for everybody there is nothing to share.
        slots=0 if settings.profile == "local" else settings.max_running,
        store=RedisCounts(redis, "router"),
    )
    health = Health()
    add_checks(health, state, spool, settings, clock)
    follow_user_keys(event_log.issuer, health, clock, within_s=WHOLE_WITHIN_S)
    async with (
        Engines(
            settings.engines,
            clock,
            headers=settings.engine_headers(),
            tls=settings.engine_tls(),
            affinity=settings.prefix_affinity,
            retried=metrics.engine_retried,
        ) as engines,
        Engines(settings.moderation_url, clock, retried=metrics.engine_retried) as services,
        client_session() as client,
    ):
        policy = settings.moderation_policy()
        moderation = policy and ModerationEndpoint(
            client, policy, settings.moderation_headers, registry
        )
        output_filter = OutputFilter(rules, registry, moderation)
        gateway = Gateway(
            state=state,
            proxy=Proxy(
                engines,
                interactions,
                metrics,
                Deadlines(settings.timeout_s, settings.stream_timeout_s, settings.heartbeat_s),
                breaker,
                votes,
                state.settings,
                output_filter,
            ),
            keys=keys,
            metrics=metrics,
            ops=OperationsApp(health, registry),
            identity=identity,
            rules=FieldRules(
                passed=settings.pass_fields,
                refused=settings.refuse_fields,
                read=identity.fields,
                refuse_unknown=settings.unknown_fields == "refuse",
            ),
            max_body_bytes=settings.max_body_bytes,
            body_timeout_s=settings.body_timeout_s,
            max_running=settings.max_running,
            quotas=quotas,
            bounds=settings.answer_bounds,
            spans=spans,
            latency=latency,
            client_ids=ClientIds(RedisIdClaims(redis)),
        )
        app = with_cors(
            moderated(gateway, settings, services, keys, quotas, output_filter, state, identity),
            settings.cors_origins,
            methods=("GET", "POST"),
            expose=EXPOSED_HEADERS,
        )
        background = BackgroundTasks()
        background.start("sources", sources.run())
        if detector is not None:
            background.start("detector", interactions.run())
        background.start("shipper", shipper.run())
        background.start("series", series.run())
        background.start("mirror", mirror.run())
        if media is not None:
            background.start("media", media.run())
        background.start("quotas", quotas.run())
        background.start("votes", VoteExchange(votes, redis, router=process, clock=clock).run())
        background.start("state", state.run())
        serving = asyncio.create_task(
            serve(
                with_local_guard(app, settings, settings.cors_origins),
                host=settings.host,
                port=settings.port,
                stop=stop,
                operations_port=instance.operations_port,
                shared_port=(lambda: health.readiness()[0]) if instance.shares_port else None,
            )
        )
        log.info("router.started", port=settings.port, engines=settings.engines)
        await asyncio.wait((serving, *background.tasks), return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        await serving
    await interactions.drain(settings.drain_timeout_s)
    if media is not None:
        await media.drain(settings.drain_timeout_s)
    left_behind.cancel()
    background.cancel()
    errors = await background.finish(FINISH_TIMEOUT_S)
    shipped = await shipper.drain(settings.drain_timeout_s)
    await event_log.stop()
    if detector is not None:
        await detector.close()
    await redis.aclose()
    log.info("router.stopped", shipped=shipped, left_bytes=spool.bytes)
    spool.close()
    journal.close()
    spans.close()
    if errors:
        raise errors[0]


async def supervise(settings: RouterSettings) -> int:
    """Keep several processes of the router running; returns the exit status."""
    supervisor = ProcessSupervisor(
        [sys.executable, "-m", "services.router"],
        settings.processes,
        stop_timeout_s=2 * settings.drain_timeout_s + STOP_TIMEOUT_S,
    )
    return await supervisor.run(stop_on_signals())


def main() -> None:
    configure_logging("router")
    spare_collector()
    settings = RouterSettings.load()
    try:
        rules = settings.filter_rules()
    except ValueError as error:
        raise SystemExit(f"RATCHET_ROUTER_OUTPUT_FILTER_FILE: {error}") from None
    arguments = sys.argv[1:]
    if settings.processes > 1 and not arguments:
        raise SystemExit(asyncio.run(supervise(settings)))
    instance = RouterInstance.of(settings, arguments)
    try:
        with take(instance.directory):
            uvloop.run(run(settings, instance, rules))
    except (RedisCluster, FolderTaken) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
