"""The router as benchmarks run it: with a real Kafka, Redis and a rollout at 20 %; and the bare proxy beside it.

The bare ASGI proxy is uvicorn and one aiohttp session and nothing else: what Python costs anyway.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from redis.asyncio import Redis

from benchmarks.proxies import PROXY_CORE, ROOT, await_answer, process
from deploy.local.stack import Stack
from shared.contracts.events.rollouts import Phase
from shared.contracts.topics import INTERACTIONS
from shared.kafka.log import read_to_end
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.kafka.topics import apply_topics
from shared.registry.routing import RoutingState
from shared.registry.view import RoutingView

READ_TIMEOUT_S = 60.0

_BARE = textwrap.dedent(
    """
    import aiohttp, os
    session = None

    async def app(scope, receive, send):
        global session
        if session is None:
            session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0),
                                            auto_decompress=False)
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        async with session.post(os.environ["UPSTREAM"] + scope["path"], data=body,
                                headers={"content-type": "application/json"}) as response:
            kind = response.headers["content-type"].encode()
            if kind.startswith(b"text/event-stream"):
                await send({"type": "http.response.start", "status": response.status,
                            "headers": [(b"content-type", kind)]})
                async for data in response.content.iter_any():
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
                return
            answer = await response.read()
        headers = [(b"content-type", b"application/json"),
                   (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})
    """
)


def bare_proxy(directory: Path, port: int) -> Sequence[str]:
    """The command of the bare proxy; the environment variable UPSTREAM names the engine."""
    (directory / "bare_proxy.py").write_text(_BARE)
    return [sys.executable, "-m", "uvicorn", "bare_proxy:app", "--app-dir", str(directory),
            "--port", str(port), "--no-access-log", "--log-level", "warning",
            "--lifespan", "off"]  # fmt: skip


@contextmanager
def router_stack(directory: Path) -> Iterator[RouterStack]:
    """Kafka and Redis with a rollout under way, ended on leaving."""
    with Stack(directory / "stack", services=[], ports="free", say=lambda _: None) as stack:
        stack.start("kafka")
        stack.start("redis")
        started = RouterStack(
            directory, stack.address("kafka"), f"redis://{stack.address('redis')}/0"
        )
        connection = KafkaConnection(started.bootstrap)
        asyncio.run(apply_topics(connection, tenants=("default",), partitions=4, replication=1))
        asyncio.run(open_rollout(started.redis_url))
        yield started


@dataclass(frozen=True, slots=True)
class RouterStack:
    """Where Kafka and Redis are, for routers on them."""

    directory: Path
    bootstrap: str
    redis_url: str

    @contextmanager
    def router(
        self,
        engine: str,
        port: int,
        *,
        name: str = "ratchet",
        cores: str = str(PROXY_CORE),
        processes: int = 1,
        operations_port: int = 0,
        root: Path = ROOT,
        program: Sequence[str] = ("-m", "services.router"),
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A router that is ready, ended on leaving.

        Args:
            engine: base URL of the engine.
            port: where it serves.
            name: of its folder and its log.
            cores: those that it may use, as taskset takes them.
            processes: how many serve the port; several need `operations_port`.
            operations_port: where its figures are, apart from the port.
            root: the checkout whose router is run.
            program: what Python is to run as the router.

        """
        env = {
            "PYTHONPATH": str(root),
            "RATCHET_KAFKA_BOOTSTRAP": self.bootstrap,
            "RATCHET_REDIS_URL": self.redis_url,
            "RATCHET_DATA_DIR": str(self.directory / name),
            "RATCHET_ROUTER_PORT": str(port),
            "RATCHET_ROUTER_ENGINES": engine,
            "RATCHET_ROUTER_STALE_AFTER_S": "600",
        }
        if operations_port:
            env["RATCHET_ROUTER_PROCESSES"] = str(processes)
            env["RATCHET_ROUTER_OPERATIONS_PORT"] = str(operations_port)
        log = self.directory / f"{name}.log"
        command = [sys.executable, *program]
        with process(command, log, cores, env, root) as running:
            await_answer(f"http://127.0.0.1:{port}/readyz", running, log)
            for number in range(processes if operations_port else 0):
                await_answer(f"http://127.0.0.1:{operations_port + number}/readyz", running, log)
            yield running

    def interactions(self) -> int:
        """How many interaction events Kafka holds."""
        return asyncio.run(_count_interactions(self.bootstrap))


async def open_rollout(redis_url: str) -> None:
    """Let the router's versions be in a rollout, a fifth of the users on the candidate."""
    async with Redis.from_url(redis_url) as redis:
        await RoutingView(redis).put(
            RoutingState(
                model="assistant",
                stable="assistant-v1.0",
                candidate="assistant-v1.1",
                rollout="benchmark",
                phase=Phase.progressing,
                weight=2_000,
                token=0,
                seq=0,
                at=datetime.now(UTC),
            )
        )


async def _count_interactions(bootstrap: str) -> int:
    log = KafkaLog(KafkaConnection(bootstrap), source="/ratchet/benchmark")
    return len(await read_to_end(log, INTERACTIONS, timeout_s=READ_TIMEOUT_S))
