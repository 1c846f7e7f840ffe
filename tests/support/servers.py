"""Kafka, Redis and Prometheus for a test session, through the stack that also serves `make up`."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local.stack import Stack
from shared.kafka.security import KafkaConnection
from shared.kafka.topics import apply_topics

_PARTITIONS = 4


class Servers:
    """Started one by one when first asked for; all end with the session."""

    def __init__(self, run_dir: Path) -> None:
        self._stack = Stack(run_dir, services=[], ports="free", scrape_interval="1s", say=_quiet)

    @property
    def stack(self) -> Stack:
        """The stack beneath: to stop and start a server, to have Prometheus `scrape` a test's own."""
        return self._stack

    def kafka(self) -> str:
        """Bootstrap address; the contract's topics exist."""
        self._stack.start("kafka")
        bootstrap = self._stack.address("kafka")
        applying = apply_topics(
            KafkaConnection(bootstrap), tenants=("default",), partitions=_PARTITIONS, replication=1
        )
        # A thread has no event loop yet, while an asynchronous fixture that asks for Kafka has.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, applying).result()
        return bootstrap

    def redis(self) -> str:
        """URL of database 0."""
        self._stack.start("redis")
        return f"redis://{self._stack.address('redis')}/0"

    def prometheus(self) -> str:
        """Base URL."""
        self._stack.start("prometheus")
        return self._stack.url("prometheus")

    def __enter__(self) -> Self:
        self._stack.up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.down(delete_data=True)


def _quiet(_: str) -> None:
    """Progress lines would mix with pytest's own."""
