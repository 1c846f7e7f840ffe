"""A year of rollouts in the log: each service that reads it is ready in seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from deploy.local.stack import Stack
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from tests.support.command import ratchet
from tests.support.history import RolloutsHistory

pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]

READY_S = 5.0
MODELS = ("chat", "search", "code")
YEAR = {"rollouts": 52, "moves": 60, "holds": 2_400}
"""Of each model: a rollout a week with its decisions. The topic keeps the holds of a month, half a
million at most; what a start reads of them is bounded by their number."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    run_dir = tmp_path_factory.mktemp("history")
    with Stack(run_dir, services=["topics", "redis", "prometheus"], ports="free") as up:
        yield up


async def test_each_service_is_ready_in_seconds_behind_a_year_of_rollouts(
    stack: Stack, record_property: Callable[[str, object], None]
) -> None:
    log = KafkaLog(KafkaConnection(stack.address("kafka")), source="/ratchet/rollout")
    await log.start()
    written = 0
    for batch in RolloutsHistory(**YEAR, models=MODELS).batches():
        await log.append_many(batch, timeout_s=60)
        written += len(batch)
    await log.stop()
    record_property("records", str(written))
    for name in ("router", "rollout"):
        began = time.monotonic()
        stack.start(name)
        took = time.monotonic() - began
        record_property(f"{name}_ready_s", f"{took:.1f}")
        assert took <= READY_S, f"{name} took {took:.1f} s"
    env = {
        "RATCHET_KAFKA_BOOTSTRAP": stack.address("kafka"),
        "RATCHET_REDIS_URL": f"redis://{stack.address('redis')}/0",
    }
    began = time.monotonic()
    ran = ratchet("state", "rebuild", env=env)
    took = time.monotonic() - began
    record_property("cli_s", f"{took:.1f}")
    assert ran.status == 0, ran.err
    assert took <= READY_S, f"the CLI took {took:.1f} s"
