"""Wires the inference service: settings, engine, agent, batch worker, application."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from pathlib import Path

import aiohttp
import structlog
import uvloop
from prometheus_client import CollectorRegistry

from services.inference.acceptances import Acceptances
from services.inference.adapter_cache import AdapterCache
from services.inference.admission import BatchAdmission
from services.inference.agent import Agent
from services.inference.api import AdapterAccess, create_app, guarded
from services.inference.base_files import BaseFiles
from services.inference.batch import BatchTimeouts, BatchWorker
from services.inference.batch_consumer import BatchConsumer
from services.inference.drain import EngineDrain
from services.inference.engine import EngineClient
from services.inference.engine_command import engine_command, engine_environment
from services.inference.generation_api import generation_router, serving
from services.inference.generation_spans import GenerationSpans
from services.inference.launcher import ExternalEngine, Launcher, LaunchTimings
from services.inference.metrics import InferenceMetrics
from services.inference.moderation import ModerationRules, Moderator
from services.inference.reconcile import AdapterLimits
from services.inference.scorer import Scorer
from services.inference.settings import CRITIC_KEY, InferenceSettings
from services.inference.verification import AdapterVerifier
from shared.clock import SystemClock
from shared.contracts.events.generations import GenerationRequested
from shared.contracts.topics import GENERATION_REQUESTS
from shared.credentials import CredentialsUnreadable
from shared.http.detector import detector_of
from shared.http.local_guard import with_local_guard
from shared.http.operations import OperationsApp
from shared.http.server import serve, stop_on_signals
from shared.kafka.consumer import ConsumerLoop
from shared.kafka.deadletters import DeadLetters
from shared.kafka.encrypted_log import encrypting
from shared.kafka.envelope import models_by_type
from shared.kafka.lag import ConsumerLag
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.keys import KeyRing
from shared.observability.disk import watch_disk
from shared.observability.health import Health
from shared.observability.logging import configure_logging
from shared.observability.trace_export import spans_of, traces_url
from shared.quotas import Quotas, RateLimits, inference_limits
from shared.redaction import Redaction
from shared.registry.follow import KeyFollower, RegistryFollower
from shared.service.background import BackgroundTasks
from shared.service.readiness import catch_up, follow_user_keys
from shared.settings import EXIT_CONFIGURATION

log = structlog.get_logger(__name__)

SOURCE = "/ratchet/inference"
CATCH_UP_S = 30.0
STUCK_AFTER_S = 900.0
"""Longer than any single wait of the agent: loading and five fingerprints."""
FINISH_TIMEOUT_S = 60.0
CONNECTIONS = 64


def engine_of(
    settings: InferenceSettings,
    client: EngineClient,
    metrics: InferenceMetrics,
    wake: asyncio.Event,
    hurry: asyncio.Event,
) -> Launcher | ExternalEngine:
    """The engine that these settings ask for; its drain ends early by `hurry`."""
    generations = settings.data_dir / "inference" / "engine-generation"
    clock = SystemClock()
    if settings.engine_external:
        return ExternalEngine(
            healthy=client.healthy,
            changed=wake.set,
            generations=generations,
            clock=clock,
            metrics=metrics,
        )
    host, port = settings.engine_address
    # By its port: replicas on one machine may share the folder.
    marker = settings.data_dir / "inference" / f"engine-{port}.draining"
    return Launcher(
        engine_command(settings, traces_url(os.environ)),
        engine_environment(settings, os.environ),
        address=(settings.engine_bind or host, port),
        healthy=client.healthy,
        answers=client.answers,
        changed=wake.set,
        generations=generations,
        policy=LaunchTimings(settings.engine_start_timeout_s, settings.engine_unhealthy_after_s),
        clock=clock,
        metrics=metrics,
        drain=EngineDrain(marker, client.load_figures, clock, settings.engine_drain_s, hurry),
        log_path=settings.engine_log,
    )


def adapter_cache(settings: InferenceSettings, name: str) -> AdapterCache:
    """A cache of adapters in a folder of its own."""
    return AdapterCache(
        settings.data_dir / "inference" / name,
        roots=settings.readable_adapter_roots,
        max_bytes=settings.adapter_max_bytes,
    )


async def run(settings: InferenceSettings) -> None:
    """Serve until SIGTERM or SIGINT."""
    hurry, stopped = asyncio.Event(), asyncio.Event()
    stop = stop_on_signals(hurry)
    registry = CollectorRegistry()
    metrics = InferenceMetrics(registry)
    watch_disk(registry, settings)
    clock = SystemClock()
    exported = spans_of("inference")
    spans = GenerationSpans(exported, clock)
    detector = detector_of(settings, registry)
    redact = Redaction(detector)
    keys = KeyRing(required=settings.profile != "local")
    brokers = KafkaLog(KafkaConnection.of(settings), source=SOURCE, client_id="ratchet-inference")
    event_log = encrypting(brokers, settings, source=SOURCE, registry=registry)
    await event_log.start()
    wake = asyncio.Event()
    versions = RegistryFollower(event_log, lambda _: wake.set())
    key_follower = KeyFollower(event_log, keys)
    connector = aiohttp.TCPConnector(limit=CONNECTIONS, ssl=settings.engine_tls())
    headers = settings.engine_headers()
    async with (
        aiohttp.ClientSession(connector=connector, headers=headers) as session,
        aiohttp.ClientSession(headers=settings.critic_headers()) as critic_session,
    ):
        client = EngineClient(session, settings.engine_url)
        critic_url = settings.moderation_critic_url
        critic = EngineClient(critic_session, critic_url, CRITIC_KEY) if critic_url else None
        engine = engine_of(settings, client, metrics, wake, hurry)
        acceptances = Acceptances(settings.data_dir / "inference" / "acceptances.json")
        base_files = BaseFiles(
            "" if settings.engine_external else settings.base_model,
            settings.data_dir / "inference" / "base-hashes.json",
            settings.served_revision,
        )
        agent = Agent(
            engine=engine,
            client=client,
            registry=versions.registry,
            models=settings.models,
            limits=AdapterLimits(
                settings.max_adapters, settings.drain_grace_s, settings.drain_limit_s
            ),
            base_files=base_files,
            cache=adapter_cache(settings, "adapters"),
            verifier=AdapterVerifier(client, versions.registry, acceptances, settings.tolerance_of),
            acceptances=acceptances,
            clock=clock,
            metrics=metrics,
            wake=wake,
        )
        admission = BatchAdmission(settings.batch_concurrency, client.load_figures, clock, metrics)
        worker = BatchWorker(
            client=client,
            adapters=agent,
            settings=versions.registry.settings,
            event_log=event_log,
            admission=admission,
            policy=BatchTimeouts(settings.batch_timeout_s, settings.batch_wait_s),
            redact=redact,
            clock=clock,
            metrics=metrics,
            spans=spans,
            stop=stop,
        )
        dead_letters = DeadLetters(event_log, service="inference", redact=redact, metrics=registry)

        def consumer_in(group: str) -> ConsumerLoop:
            return ConsumerLoop(
                KafkaConnection.of(settings),
                group=group,
                handler=worker.handle,
                models=models_by_type(GenerationRequested),
                dead_letters=dead_letters,
                topics=[GENERATION_REQUESTS],
                max_records=settings.batch_concurrency * 4,
                concurrency=settings.batch_concurrency,
                opened=event_log.opened,
            )

        consumer = BatchConsumer(consumer_in, agent.base_other_than)
        registry.register(ConsumerLag(consumer.behind))
        scorer = Scorer(
            python=settings.engine_python,
            registry=versions.registry,
            cache=adapter_cache(settings, "reward-models"),
            clock=clock,
            metrics=metrics,
            base_files=base_files,
        )
        moderator = Moderator(
            client=client,
            critic_client=critic,
            scorer=scorer,
            serving=lambda name: serving(versions.registry, agent, name).record.version,
            settings=versions.registry.settings,
            event_log=event_log,
            rules=ModerationRules(
                policy=settings.moderation_policy,
                critic=settings.moderation_critic,
                writer_s=settings.moderation_writer_s,
                critic_s=settings.moderation_critic_s,
                score_s=settings.moderation_score_s,
                pairs=settings.moderation_pairs,
            ),
            redact=redact,
            clock=clock,
            metrics=metrics,
            spans=spans,
        )
        quotas = Quotas(key=inference_limits(RateLimits()), tenant=RateLimits())
        generation = generation_router(
            agent,
            versions.registry,
            scorer,
            moderator,
            keys,
            quotas,
            spans,
            settings.user_pseudonyms(),
        )
        caught_up = asyncio.Event()
        health = Health()
        health.progress("engine", engine.idle_s, STUCK_AFTER_S)
        health.progress("agent", agent.idle_s, STUCK_AFTER_S)
        health.progress("batch", consumer.idle_s, STUCK_AFTER_S)
        health.ready(
            "registry",
            lambda: None if caught_up.is_set() else "not read to its end yet; is Kafka up?",
        )
        health.ready("adapters", agent.unready)
        follow_user_keys(event_log.issuer, health, clock)
        health.ready("service", lambda: "stopping" if stop.is_set() else None)

        async def run_engine() -> None:
            try:
                await engine.run(stop)
            finally:
                stopped.set()

        async def reconcile() -> None:
            # Acting on half of the registry would unload what should serve.
            if await catch_up([versions], stop, timeout_s=CATCH_UP_S):
                caught_up.set()
            await agent.run(stop)

        jobs: dict[str, Coroutine[None, None, None]] = {
            "engine": run_engine(),
            "versions": versions.run(),
            "keys": key_follower.run(),
            "agent": reconcile(),
            "admission": admission.run(stop),
            "batch": consumer.run(stop),
            "quotas": quotas.run(),
        }
        background = BackgroundTasks()
        for name, job in jobs.items():
            background.start(name, job)
        health.alive("tasks", lambda: None if stop.is_set() else background.ended())
        access = AdapterAccess(versions.registry, settings.tenants_of_models())
        routes = create_app(agent, engine, keys, generation, event_log, access)
        app = OperationsApp(health, registry, guarded(routes, keys))
        try:
            await serve(
                with_local_guard(app, settings),
                host=settings.host,
                port=settings.port,
                stop=stopped,  # readiness and the adapters' states are told while the engine drains
                operations_port=settings.operations_port,
            )
        finally:
            stop.set()
            wake.set()
            # Engine and consumer end by themselves once `stop` is set.
            background.cancel("versions", "keys", "agent", "admission", "quotas")
            await background.finish(FINISH_TIMEOUT_S)
            await scorer.close()
            await event_log.stop()
            exported.close()
            if detector is not None:
                await detector.close()


def check(settings: InferenceSettings) -> str:
    """What is wrong with settings taken together, or nothing."""
    try:
        settings.critic_headers()
    except CredentialsUnreadable as error:
        return str(error)
    if settings.engine_external:
        return ""
    if not settings.base_model:
        return (
            "RATCHET_INFERENCE_BASE_MODEL: not set; give the base model's path or hub id, "
            "or use a running engine with RATCHET_INFERENCE_ENGINE_EXTERNAL=true"
        )
    if settings.engine_url.startswith("https:"):
        return (
            "RATCHET_INFERENCE_ENGINE_URL: https is for a running engine; "
            "set RATCHET_INFERENCE_ENGINE_EXTERNAL=true, or write http"
        )
    if not Path(settings.engine_python).is_file():
        return (
            f"RATCHET_INFERENCE_ENGINE_PYTHON: there is no {settings.engine_python}; "
            "make setup brings it"
        )
    return ""


def main() -> None:
    settings = InferenceSettings.load()
    configure_logging("inference", settings.log_level)
    wrong = check(settings)
    if wrong:
        print(wrong, file=sys.stderr)
        raise SystemExit(EXIT_CONFIGURATION)
    uvloop.run(run(settings))


if __name__ == "__main__":
    main()
