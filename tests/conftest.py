"""Fixtures for all tests: one real Kafka, Redis and Prometheus a session, whole stacks on demand.

Servers are shared between tests, so a test makes its names (topics, key prefixes, groups) its own
with `unique`. Which environment variables a shell happens to carry must not decide a test.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from tests.support.servers import Servers


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """Takes RATCHET_… variables out for the session, and gives them back."""
    taken = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith("RATCHET_")}
    yield
    os.environ.update(taken)


@pytest.fixture
def unique() -> str:
    """A name no other test has, fit for topics, groups and keys."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def servers(clean_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The third-party servers of this session; each starts when first asked for."""
    run_dir = tmp_path_factory.mktemp("servers")
    with Servers(run_dir) as started:
        yield started


@pytest.fixture(scope="session")
def kafka(servers: Servers) -> str:
    """Bootstrap address of a real broker with the contract's topics."""
    return servers.kafka()


@pytest.fixture(scope="session")
def redis_server(servers: Servers) -> str:
    """URL of a real Redis. Use keys of your own, or database 1–15 flushed by yourself."""
    return servers.redis()


@pytest.fixture(scope="session")
def prometheus(servers: Servers) -> str:
    """URL of a real Prometheus that scrapes what `servers.stack.scrape` was given, every second."""
    return servers.prometheus()
