"""Fixtures for all tests: one real Kafka, Redis and Prometheus a session, whole stacks on demand.

Servers are shared between tests, so a test makes its names (topics, key prefixes, groups) its own
with `unique`. Which environment variables a shell happens to carry must not decide a test.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler.loadscope import LoadScopeScheduling

from deploy.local.stack import Stack
from deploy.local.starter import BASE_MODEL, STARTER_ENGINE, prepare_starter
from shared.observability import logging as observability_logging
from tests.support.late_connections import close_late_connections
from tests.support.servers import Servers

_WHOLE_STACK_S = 900
_SERVERS_S = 300

# A deadline an example would measure the machine's other work; pytest-timeout bounds each test.
settings.register_profile("ratchet", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("ratchet")


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """Takes RATCHET_… variables out for the session, and gives them back."""
    taken = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith("RATCHET_")}
    yield
    os.environ.update(taken)


@pytest.fixture(scope="session", autouse=True)
def late_connections() -> Iterator[None]:
    """A server of a test that closes leaves no connection open for another test to be blamed for."""
    with pytest.MonkeyPatch.context() as patch:
        close_late_connections(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def logs_of_this_process() -> Iterator[None]:
    """A command that runs in this process sets up no logging: that would outlive its test.

    Loggers keep the stream they write to first, and a test's captured one is closed after it.
    """

    def refuse(**_: object) -> None:
        pytest.fail("structlog.configure outlives its test: call it in a process of its own")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observability_logging, "configure_logging", lambda *_: None)
        patch.setattr(structlog, "configure", refuse)
        yield


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


@pytest.fixture(scope="session")
def starter() -> str:
    """The starter model's path; trained now (75 s) unless an earlier run left it in the cache."""
    return prepare_starter(lambda _: None).model


@pytest.fixture(scope="session")
def full_stack(
    clean_environment: None, starter: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Everything, vLLM with the starter model included; shared by all tests of the session.

    A test that needs other settings builds a `Stack` of its own.
    """
    run_dir = tmp_path_factory.mktemp("stack")
    env = {
        BASE_MODEL: starter,
        **STARTER_ENGINE,
        # Tests start trainings and rollouts themselves; what begins by itself is the demo's test.
        "RATCHET_ROLLOUT_AUTO_START": "false",
        "RATCHET_TRAINING_MIN_PAIRS": "1000000",
    }
    with Stack(run_dir, env=env, ports="free", scrape_interval="1s") as stack:
        yield stack


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that asks for servers also starts them, so all who may ask get time for it."""
    for item in items:
        whole = "full_stack" in getattr(item, "fixturenames", ())
        if whole and item.get_closest_marker("e2e") is None:
            item.add_marker(pytest.mark.e2e)
        if item.get_closest_marker("timeout") is None:
            if whole:
                item.add_marker(pytest.mark.timeout(_WHOLE_STACK_S))
            elif "integration" in item.path.parts:
                item.add_marker(pytest.mark.timeout(_SERVERS_S))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ServersInOneWorker | None:
    """Lets `--dist loadscope` run unit and contract tests beside those that share servers."""
    return ServersInOneWorker(config, log) if config.getoption("dist") == "loadscope" else None


class ServersInOneWorker(LoadScopeScheduling):
    """One worker runs, in order, every test that may start servers; the others run the rest."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if nodeid.startswith(("tests/unit", "tests/contract")) else "servers"
