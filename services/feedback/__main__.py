"""Wires the feedback service: settings, log, followers, application."""

from __future__ import annotations

import sys

import uvloop
from prometheus_client import CollectorRegistry

from services.feedback.annotation.leases import RedisLeases
from services.feedback.annotation.service import AnnotationService
from services.feedback.api import FeedbackApi, Limits, create_app, open_to_browsers
from services.feedback.circuit_breaker import CircuitBreaker
from services.feedback.comparisons import Comparisons
from services.feedback.erasure.api import UserApi, user_router
from services.feedback.erasure.eraser import ERASURE_MODELS, Eraser
from services.feedback.erasure.eraser import GROUP as ERASURE_GROUP
from services.feedback.metrics import FeedbackMetrics
from services.feedback.open_comparisons import RedisComparisons
from services.feedback.pair_choice import PairChoice
from services.feedback.publisher import SOURCE, FeedbackPublisher
from services.feedback.read_model.api import QueryApi, query_router
from services.feedback.read_model.queries import ReadModelQueries
from services.feedback.read_model.schema import database_path
from services.feedback.read_model.supervisor import ReadModelMetrics, ReadModelSupervisor
from services.feedback.router_client import RouterClient, router_session
from services.feedback.settings import FeedbackSettings
from services.feedback.trace_limits import TraceLimits
from services.feedback.voting.ballots import RaterBallots
from services.feedback.voting.mount import VotingOptions, mount_voting
from services.feedback.voting.page import VotingPage
from services.feedback.voting.plan import PlanUnreadable
from services.feedback.voting.prompt_ranking import PromptRanking, RankingSchedule
from services.feedback.voting.rater_store import RedisRaters
from shared.clock import SystemClock
from shared.contracts.topics import ERASURES
from shared.credentials import CredentialsUnreadable
from shared.garbage import spare_collector
from shared.http.detector import detector_of
from shared.http.local_guard import with_local_guard
from shared.http.operations import OperationsApp
from shared.http.reward_scores import RewardScores
from shared.http.server import serve, stop_on_signals
from shared.kafka.consumer import ConsumerLoop
from shared.kafka.deadletters import DeadLetters
from shared.kafka.encrypted_log import encrypting
from shared.kafka.lag import ConsumerLag
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.keys import KeyRing
from shared.media_store import MediaStore
from shared.observability.disk import watch_disk
from shared.observability.health import Health
from shared.observability.logging import configure_logging
from shared.observability.trace_export import spans_of
from shared.quotas import Quotas, RateLimits, RedisCounts, feedback_limits
from shared.redaction import Redaction
from shared.registry.connection import RedisCluster, connect_redis, refuse_cluster
from shared.registry.follow import KeyFollower, RegistryFollower, RoutingFollower
from shared.service.background import BackgroundTasks
from shared.service.readiness import follow_user_keys, freshness
from shared.settings import EXIT_CONFIGURATION

REDIS_TIMEOUT_S = 2.0
FINISH_TIMEOUT_S = 3.0
ERASURES_AT_ONCE = 8
"""They wait together for segments that are to close."""


async def run(settings: FeedbackSettings, voting: VotingOptions) -> None:
    """Serve until told to stop."""
    stop = stop_on_signals()
    registry = CollectorRegistry()
    metrics = FeedbackMetrics(registry)
    watch_disk(registry, settings)
    clock = SystemClock()
    spans = spans_of("feedback")
    detector = detector_of(settings, registry)
    redact = Redaction(detector)
    brokers = KafkaLog(KafkaConnection.of(settings), source=SOURCE, client_id="ratchet-feedback")
    log = encrypting(brokers, settings, source=SOURCE, registry=registry)
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
    redis = connect_redis(
        settings,
        socket_timeout=REDIS_TIMEOUT_S,
        socket_connect_timeout=REDIS_TIMEOUT_S,
    )
    await refuse_cluster(redis)
    quotas = Quotas(
        key=feedback_limits(RateLimits(settings.key_events_per_minute)),
        tenant=RateLimits(settings.tenant_events_per_minute),
        store=RedisCounts(redis, "feedback"),
    )
    query_quotas = Quotas(
        key=lambda _: RateLimits(settings.key_queries_per_minute),
        tenant=RateLimits(),
        store=RedisCounts(redis, "feedback-queries"),
    )
    dead_letters = DeadLetters(log, service="feedback", redact=redact, metrics=registry)
    rules = settings.rules
    eraser = ConsumerLoop(
        KafkaConnection.of(settings),
        group=ERASURE_GROUP,
        handler=Eraser(
            log, clock, MediaStore(settings.media_uri) if settings.media_uri else None
        ).handle,
        models=ERASURE_MODELS,
        dead_letters=dead_letters,
        topics=[ERASURES],
        max_records=ERASURES_AT_ONCE,
        concurrency=ERASURES_AT_ONCE,
    )
    registry.register(ConsumerLag(eraser.behind))
    health = Health()
    health.ready("log", lambda: "the event log is unavailable" if publisher.refuses() else None)
    follow_user_keys(log.issuer, health, clock)
    for name, follower in followers.items():
        health.ready(name, freshness(follower.age_s))
    read_model = ReadModelSupervisor(
        database_path(settings.data_dir), ReadModelMetrics(registry), clock
    )
    async with router_session(settings.max_comparisons) as session, redis:
        store = RedisComparisons(
            redis,
            ttl_s=settings.comparison_ttl_s,
            seal=settings.redis_seal(),
            text_keys=log.issuer,
        )
        comparisons = Comparisons(
            router=RouterClient(session, settings.router_url, timeout_s=settings.router_timeout_s),
            store=store,
            publisher=publisher,
            routing=routing.table,
            registry=versions.registry,
            metrics=metrics,
            clock=clock,
            redact=redact,
            anonymous_votes=settings.takes_anonymous_votes,
            max_asking=settings.max_comparisons,
        )
        model = ReadModelQueries(database_path(settings.data_dir))
        traces = TraceLimits(model)
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
            traces=traces,
            quotas=quotas,
            rules=rules,
            spans=spans,
        )
        queries = QueryApi(
            queries=model,
            age_s=read_model.age_s,
            reindex=read_model.reindex,
            keys=keys,
            registry=versions.registry,
            clock=clock,
            quotas=query_quotas,
            tenants=settings.tenants_of_models(),
        )
        annotations = AnnotationService(
            event_log=log,
            leases=RedisLeases(redis, lease=voting.plan.annotation.lease),
            comparisons=comparisons,
            routing=routing.table,
            publisher=publisher,
            read_model=model,
            registry=registry,
            keys=keys,
            clock=clock,
            redact=redact,
            plan=voting.plan,
            authorization=voting.authorization,
        )
        users = UserApi(log, keys, clock, pseudonym=rules.pseudonyms.of)
        application = create_app(
            api, metrics, query_router(queries), annotations.router(), user_router(users)
        )
        scores = RewardScores(session, settings.inference_url, lambda: voting.authorization)
        ballots = RaterBallots(
            comparisons=comparisons,
            open_comparisons=store,
            raters=RedisRaters(redis, ttl_s=settings.comparison_ttl_s),
            publisher=publisher,
            routing=routing.table,
            metrics=metrics,
            clock=clock,
            redact=redact,
            plan=voting.plan,
            authorization=voting.authorization,
            pairs=PairChoice.of(scores, clock, settings.voting_candidates),
            drawn_share=settings.voting_drawn_share,
        )
        ranking = PromptRanking(
            router=RouterClient(
                session,
                settings.router_url,
                timeout_s=settings.router_timeout_s,
                purpose="evaluation",
            ),
            scores=scores,
            queue=ballots.reserve.queue,
            plan=voting.plan,
            compared=ballots.reserve.compared,
            schedule=RankingSchedule(
                settings.voting_rank_hours * 3600, settings.voting_rank_prompts
            ),
            clock=clock,
            authorization=voting.authorization,
        )
        mount_voting(
            application,
            lambda sessions: [
                *VotingPage(ballots, sessions).routes(),
                *annotations.pages(sessions),
            ],
            voting,
            keys,
            clock,
        )
        served = open_to_browsers(application, settings.cors_origins)
        app = with_local_guard(
            OperationsApp(health, registry, served), settings, settings.cors_origins
        )
        background = BackgroundTasks()
        for name, follower in followers.items():
            background.start(name, follower.run())
        background.start("quotas", quotas.run())
        background.start("query_quotas", query_quotas.run())
        health.note("annotations", freshness(annotations.follower.age_s))
        background.start("annotations", annotations.run())
        background.start("erasures", eraser.run(stop))
        if settings.read_model:
            health.note("read_model", freshness(read_model.age_s))
            background.start("read_model", read_model.run())
            background.start("traces", traces.follow())
        if voting.sign_in and voting.plan.prompts and settings.voting_rank_hours:
            background.start("ranking", ranking.run())
        health.alive("tasks", background.ended)
        spare_collector()
        try:
            await serve(
                app,
                host=settings.host,
                port=settings.port,
                stop=stop,
                operations_port=settings.operations_port,
            )
        finally:
            stop.set()
            await ballots.reserve.close()
            background.cancel(
                *followers,
                "read_model",
                "traces",
                "quotas",
                "query_quotas",
                "annotations",
                "ranking",
            )
            await background.finish(FINISH_TIMEOUT_S)
            await log.stop()
            spans.close()
            if detector is not None:
                await detector.close()


def main() -> None:
    settings = FeedbackSettings.load()
    configure_logging("feedback", settings.log_level)
    try:
        uvloop.run(run(settings, VotingOptions.of(settings)))
    except (CredentialsUnreadable, PlanUnreadable) as error:
        print(error, file=sys.stderr)
        raise SystemExit(EXIT_CONFIGURATION) from None
    except RedisCluster as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
