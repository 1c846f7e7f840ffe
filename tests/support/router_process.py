"""A router process on real Kafka and Redis, and what stands around it: controller and engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import openai
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from deploy.local.ports import free_ports
from deploy.local.processes import ROOT
from shared.contracts.events.interactions import InteractionRecorded
from shared.contracts.events.rollouts import Decision, DecisionKind, LeaderElected, Phase
from shared.contracts.topics import INTERACTIONS, ROLLOUTS
from shared.kafka.envelope import header
from shared.kafka.log import read_to_end
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.registry.routing import RoutingState
from shared.registry.view import RoutingView
from tests.support.waiting import eventually

START_TIMEOUT_S = 30.0


class ControllerDouble:
    """Writes what a rollout controller writes, to the log and to Redis or to one of them."""

    def __init__(self, log: KafkaLog, redis: Redis, model: str) -> None:
        self.model = model
        self.rollout = f"{model}-r1"
        self._log = log
        self._view = RoutingView(redis)
        self._token = -1
        self._seq = 0

    async def lead(self) -> None:
        event = LeaderElected(holder="test", at=datetime.now(UTC))
        position = await self._log.publish(
            ROLLOUTS, key="leader", event=event, event_id=uuid.uuid4().hex
        )
        self._token = position.offset

    async def decide(
        self,
        weight: int,
        *,
        candidate: str = "candidate",
        phase: Phase = Phase.progressing,
        to: tuple[str, ...] = ("kafka", "redis"),
        outside: bool = False,
    ) -> None:
        self._seq += 1
        decision = Decision(
            token=self._token,
            seq=self._seq,
            kind=DecisionKind.stable_set if outside else DecisionKind.weight,
            model=self.model,
            rollout_id="" if outside else self.rollout,
            stable=f"{self.model}-stable",
            candidate="" if outside else f"{self.model}-{candidate}",
            phase=Phase.healthy if outside else phase,
            weight=weight,
            actor="test",
            reason="test",
            at=datetime.now(UTC),
        )
        if "kafka" in to:
            await self._log.publish(
                ROLLOUTS, key=self.rollout, event=decision, event_id=uuid.uuid4().hex
            )
        if "redis" in to:
            assert await self._view.put(RoutingState.of(decision))


class ServiceProcess:
    """A process of one service, the router unless said otherwise; started as often as one likes."""

    def __init__(
        self, env: dict[str, str], port: int, log_file: Path, *, module: str = "services.router"
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.env = env
        self._log_file = log_file
        self._module = module
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, **more: str) -> None:
        with self._log_file.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._module,
                cwd=ROOT,
                env={**os.environ, **self.env, **more},
                stdout=output,
                stderr=output,
            )

    async def ready(self) -> None:
        async with httpx.AsyncClient() as client:
            await eventually(
                lambda: self._ready(client), f"{self._module} is ready", START_TIMEOUT_S
            )

    async def _ready(self, client: httpx.AsyncClient) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, self._log_file.read_text()
        with contextlib.suppress(httpx.TransportError):
            return (await client.get(f"{self.url}/readyz")).status_code == 200
        return False

    def children(self) -> list[int]:
        """Ids of the processes that it started, oldest first."""
        assert self._process is not None
        pid = self._process.pid
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    async def exited(self) -> int:
        assert self._process is not None
        async with asyncio.timeout(60):
            return await self._process.wait()

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return 0
        process.send_signal(number)
        async with asyncio.timeout(60):
            return await process.wait()


class RouterProcessHarness:
    """Everything around the router under test."""

    def __init__(self, router: ServiceProcess, controller: ControllerDouble, log: KafkaLog) -> None:
        self.router = router
        self.controller = controller
        self.log = log
        self.model = controller.model

    def another(self, log_file: Path) -> ServiceProcess:
        port = free_ports(["router"])["router"]
        return ServiceProcess(self.router.env | {"RATCHET_ROUTER_PORT": str(port)}, port, log_file)

    def openai(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.router.url}/v1", api_key="none", max_retries=0)

    async def ask(
        self, client: httpx.AsyncClient, user: str = "", *, router: ServiceProcess | None = None
    ) -> httpx.Response:
        body = {"model": self.model, "messages": [{"role": "user", "content": "hi"}]}
        headers = {"x-ratchet-user": user} if user else {}
        return await client.post(
            f"{(router or self.router).url}/v1/chat/completions",
            json=body,
            headers=headers,
            timeout=10,
        )

    async def arms(self, users: int = 20) -> set[str]:
        async with httpx.AsyncClient() as client:
            answers = [await self.ask(client, f"u{number}") for number in range(users)]
        assert {answer.status_code for answer in answers} == {200}
        return {answer.headers["x-ratchet-arm"] for answer in answers}

    async def interactions(self) -> list[InteractionRecorded]:
        """What Kafka holds of this test's model."""
        records = await read_to_end(self.log, INTERACTIONS, timeout_s=60)
        events = [
            InteractionRecorded.model_validate_json(record.value or b"")
            for record in records
            if header(record.headers, "ce_type") == InteractionRecorded.ce_type
        ]
        return [event for event in events if event.model == self.model]

    async def traces(self) -> set[str]:
        return {event.trace_id for event in await self.interactions()}


async def requests_by_process(operations_ports: Iterable[int]) -> dict[str, int]:
    """Attempts counted by each process that answers on its port, by the process's own label."""
    found: dict[str, int] = {}
    async with httpx.AsyncClient(timeout=60) as client:
        for port in operations_ports:
            with contextlib.suppress(httpx.TransportError):
                text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
                for family in text_string_to_metric_families(text):
                    for sample in family.samples:
                        if sample.name == "ratchet_router_requests_total":
                            process = sample.labels["router"]
                            found[process] = found.get(process, 0) + int(sample.value)
    return found


@asynccontextmanager
async def router_process(
    kafka: str, redis_url: str, model: str, directory: Path, engine: str, **settings: str
) -> AsyncIterator[RouterProcessHarness]:
    """A router that is not started yet, with a Redis database of its own (flushed).

    `settings` are further environment variables.
    """
    redis = Redis.from_url(redis_url)
    await redis.flushdb()
    log = KafkaLog(KafkaConnection(kafka), source="/ratchet/test", client_id=model)
    await log.start()
    port = free_ports(["router"])["router"]
    env = {
        "RATCHET_KAFKA_BOOTSTRAP": kafka,
        "RATCHET_REDIS_URL": redis_url,
        "RATCHET_DATA_DIR": str(directory / "data"),
        "RATCHET_ROUTER_PORT": str(port),
        "RATCHET_ROUTER_ENGINES": engine,
        **settings,
    }
    controller = ControllerDouble(log, redis, model)
    router = ServiceProcess(env, port, directory / "router.log")
    try:
        await controller.lead()
        yield RouterProcessHarness(router, controller, log)
    finally:
        await router.end(signal.SIGKILL)
        await log.stop()
        await redis.aclose()
