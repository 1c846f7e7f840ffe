"""Harness around a real rollout service: stand-ins for routers and one adapter agent.

Kafka, Redis, Prometheus and the service are real. The stand-in routers follow the routing view in
Redis, assign simulated users by the design's hash and export the router's and the aggregator's
series; their users never need an engine, so a test may have any failure at any rate.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
from aiohttp import web
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.contracts.events.base import WEIGHT_SCALE
from shared.contracts.events.versions import (
    DatasetRef,
    Fingerprint,
    GateResult,
    VersionRecord,
    record_key,
)
from shared.contracts.topics import VERSIONS
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.registry.routing import RoutingState
from shared.registry.view import RoutingView

TICK_S = 0.05
OUTCOMES = ("ok", "client_error", "server_error", "timeout", "crash", "cancelled")
HOST = "127.0.0.1"
ALWAYS = "ratchet_router_spool_bytes 0\n"
"""What a router exports with a rollout or without; by it the service knows that it is up."""


@dataclass
class VersionBehaviour:
    """How a version does: shares of failing and slow answers, and the mean score."""

    failing: float = 0.0
    slow: float = 0.0
    score: float = 0.7


@dataclass
class ArmTally:
    """What really happened on one arm of one rollout."""

    requests: int = 0
    failures: int = 0
    scores: int = 0
    score_sum: float = 0.0
    first_at: float = 0.0
    last_at: float = 0.0


class StandInRouter:
    """Counters of one router process, which bear its id."""

    def __init__(self) -> None:
        self.id = secrets.token_hex(4)
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self.seen_keys: set[tuple[str, int, str]] = set()
        self.rollouts: set[tuple[str, str]] = set()
        self.hidden = False

    def open(self, state: RoutingState) -> None:
        """Create a rollout's series at 0."""
        if (state.model, state.rollout) in self.rollouts:
            return
        self.rollouts.add((state.model, state.rollout))
        for version, arm in ((state.stable, "stable"), (state.candidate, "candidate")):
            labels = attempt_labels(state, version, arm)
            for outcome in OUTCOMES:
                self.add("ratchet_router_requests_total", {**labels, "outcome": outcome}, 0)
            self.add("ratchet_router_slow_requests_total", labels, 0)
            self.add("ratchet_router_request_duration_seconds_count", labels, 0)
            keys = {"model": state.model, "arm": arm, "rollout": state.rollout}
            self.add("ratchet_router_assigned_keys_total", keys, 0)
        self.add("ratchet_router_rollout_seen", {"model": state.model, "rollout": state.rollout}, 1)

    def add(self, name: str, labels: dict[str, str], amount: float) -> None:
        """Raise a counter."""
        key = (name, tuple(sorted(labels.items())))
        self.values[key] = self.values.get(key, 0.0) + amount

    def exposition(self) -> str:
        """The series in Prometheus's text format."""
        lines: list[str] = []
        for (name, labels), value in self.values.items():
            whose = (("router", self.id),) if name.startswith("ratchet_router_") else ()
            shown = ",".join(f'{label}="{given}"' for label, given in (*labels, *whose))
            lines.append(f"{name}{{{shown}}} {value}\n")
        return "".join(lines)


class RolloutHarness:
    """Users, routers and an agent for one model."""

    def __init__(
        self,
        model: str,
        *,
        kafka: str,
        redis_url: str,
        rollout_url: str,
        routers: int = 1,
        rate: float = 60.0,
        seed: int = 7,
    ) -> None:
        self.model = model
        self.rate = rate
        self.feedback_share = 0.3
        self.behaviours: dict[str, VersionBehaviour] = defaultdict(VersionBehaviour)
        self.uncounted: set[str] = set()
        """Arms whose users are assigned and whose requests no router ever counts."""
        self.routers = [StandInRouter() for _ in range(routers)]
        self.scores = StandInRouter()
        self.counts: dict[tuple[str, str], ArmTally] = defaultdict(ArmTally)
        self.states: list[tuple[float, RoutingState]] = []
        self.loaded: set[str] = set()
        self.refused: dict[str, str] = {}
        self.engine_ready = True
        self.generation = 1
        self.addresses: list[str] = []
        self.score_address = ""
        self._redis = Redis.from_url(redis_url)
        self._view = RoutingView(self._redis)
        self._log = KafkaLog(
            KafkaConnection(kafka), source="/ratchet/training", client_id="harness"
        )
        self._random = random.Random(seed)
        self._tasks: list[asyncio.Task[None]] = []
        self._runners: list[web.AppRunner] = []
        self.http = httpx.AsyncClient(base_url=rollout_url, timeout=60)

    async def open(self) -> None:
        """Bind the stand-ins and let traffic flow."""
        await self._log.start()
        for router in self.routers:
            self.addresses.append(await self._serve(_exporter(router, ALWAYS)))
        self.score_address = await self._serve(_exporter(self.scores))
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._drive())]

    async def close(self) -> None:
        """End everything that the harness started."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for runner in self._runners:
            await runner.cleanup()
        await self.http.aclose()
        await self._log.stop()
        await self._redis.aclose()

    async def register(self, version: str, *, released: bool = True, loaded: bool = True) -> None:
        """Put a version's record on the log, as training does."""
        record = VersionRecord(
            version=version,
            model=self.model,
            method="dpo",
            base="base",
            adapter_uri="memory://none",
            adapter_sha256="0" * 64,
            fingerprint=Fingerprint(dtype="float32", texts=()),
            dataset=DatasetRef(dataset_id="d", uri="memory://d", sha256="0" * 64, rows=1),
            hyperparameters={},
            seed=0,
            code_revision="test",
            gate=GateResult(passed=released),
            job_id="job",
            created_at=datetime.now(UTC),
        )
        if loaded:
            self.loaded.add(version)
        await self._log.publish(
            VERSIONS, key=record_key(version), event=record, event_id=f"record:{version}"
        )

    async def flush_redis(self) -> None:
        """Everything in Redis is gone."""
        await self._redis.flushall()

    @property
    def state(self) -> RoutingState | None:
        """The newest routing state."""
        return self.states[-1][1] if self.states else None

    async def current(self) -> dict[str, Any]:
        """The model's newest rollout, empty before the first."""
        answer = await self.http.get("/v1/rollouts/current", params={"model": self.model})
        return answer.json() if answer.status_code == 200 else {}

    async def decisions(self, rollout_id: str) -> list[dict[str, Any]]:
        """All decisions of a rollout that the service keeps."""
        path = f"/v1/rollouts/{rollout_id}/decisions"
        return (await self.http.get(path, params={"limit": 1000})).json()["decisions"]

    async def version_state(self, version: str) -> str:
        """Where a version stands."""
        answer = await self.http.get(f"/v1/versions/{version}")
        return answer.json()["state"] if answer.status_code == 200 else ""

    def agent_body(self) -> dict[str, Any]:
        """What the stand-in agent says."""
        adapters = [
            {"version": version, "state": "ready", "reason": "", "difference": 0.0}
            for version in sorted(self.loaded if self.engine_ready else ())
        ]
        adapters += [
            {"version": version, "state": "refused", "reason": reason, "difference": 1.0}
            for version, reason in self.refused.items()
        ]
        return {
            "engine": {
                "ready": self.engine_ready,
                "generation": self.generation,
                "base_model": "base",
            },
            "adapters": adapters,
        }

    async def _serve(self, app: web.Application) -> str:
        runner = web.AppRunner(app)
        await runner.setup()
        self._runners.append(runner)
        site = web.TCPSite(runner, HOST, 0)
        await site.start()
        return f"{HOST}:{runner.addresses[0][1]}"

    async def _follow(self) -> None:
        while True:
            try:
                async for state in self._view.announcements():
                    if state is None:
                        continue
                    for router in self.routers if state.rollout else ():
                        router.open(state)
                    if state.model == self.model:
                        self.states.append((time.time(), state))
            except RedisError:
                await asyncio.sleep(TICK_S)

    async def _drive(self) -> None:
        owed = 0.0
        while True:
            await asyncio.sleep(TICK_S)
            state = self.state
            owed += self.rate * TICK_S
            for _ in range(int(owed)):
                if state is not None and state.rollout:
                    self._request(state)
            owed -= int(owed)

    def _request(self, state: RoutingState) -> None:
        router = self._random.choice(self.routers)
        user = self._random.randrange(5_000)
        arm = "candidate" if bucket(state.rollout, user) < state.weight else "stable"
        version = state.candidate if arm == "candidate" else state.stable
        behaviour = self.behaviours[version]
        key = (state.rollout, state.weight, f"{user}")
        if key not in router.seen_keys:
            router.seen_keys.add(key)
            keys = {"model": state.model, "arm": arm, "rollout": state.rollout}
            router.add("ratchet_router_assigned_keys_total", keys, 1)
        if arm in self.uncounted:
            return
        labels = attempt_labels(state, version, arm)
        failed = self._random.random() < behaviour.failing
        slow = self._random.random() < behaviour.slow
        outcome = "server_error" if failed else "ok"
        router.add("ratchet_router_requests_total", {**labels, "outcome": outcome}, 1)
        router.add("ratchet_router_request_duration_seconds_count", labels, 1)
        router.add("ratchet_router_slow_requests_total", labels, slow)
        counts = self.counts[state.rollout, arm]
        counts.requests += 1
        counts.failures += failed
        counts.last_at = time.time()
        counts.first_at = counts.first_at or counts.last_at
        if not failed and self._random.random() < self.feedback_share:
            score = float(self._random.random() < behaviour.score)
            counts.scores += 1
            counts.score_sum += score
            figures = {
                "version": version,
                "arm": arm,
                "rollout": state.rollout,
                "segment": "",
                "partition": str(user % 4),
            }
            self.scores.add("ratchet_satisfaction_sum_total", figures, score)
            self.scores.add("ratchet_satisfaction_count_total", figures, 1)


class StandInAgent:
    """One adapter agent's endpoint: the adapters of all its harnesses, the engine of the first."""

    def __init__(self) -> None:
        self.harnesses: list[RolloutHarness] = []
        self.address = ""
        self._runner: web.AppRunner | None = None

    async def open(self, port: int) -> None:
        """Bind."""
        app = web.Application()
        app.router.add_get("/v1/adapters", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, port).start()

    async def close(self) -> None:
        """Unbind."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, _: web.Request) -> web.Response:
        if not self.harnesses:
            return web.json_response({}, status=503)
        bodies = [harness.agent_body() for harness in self.harnesses]
        adapters = [adapter for body in bodies for adapter in body["adapters"]]
        return web.json_response({**bodies[0], "adapters": adapters})


def bucket(rollout: str, user: int) -> int:
    """The design's bucket of a user, 0 to 9999."""
    text = "\0".join((rollout, "default", "user", str(user))).encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "big") % WEIGHT_SCALE


def attempt_labels(state: RoutingState, version: str, arm: str) -> dict[str, str]:
    """Labels of an attempt's series."""
    return {
        "model": state.model,
        "version": version,
        "arm": arm,
        "rollout": state.rollout,
        "segment": "",
    }


def weights(decisions: Iterable[dict[str, Any]]) -> list[int]:
    """The weights that decisions set, in order."""
    found: list[int] = []
    for decision in decisions:
        if not found or decision["weight"] != found[-1]:
            found.append(decision["weight"])
    return found


def _exporter(router: StandInRouter, always: str = "") -> web.Application:
    async def metrics(_: web.Request) -> web.Response:
        if router.hidden:
            return web.Response(status=503)
        return web.Response(text=always + router.exposition(), content_type="text/plain")

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    return app
