"""Every client against a real broker with TLS, SASL and an authorizer."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from shared.contracts.events.base import Event
from shared.contracts.events.quality import Tick
from shared.contracts.topics import API_KEYS, FEEDBACK, TICKS, intake_topic
from shared.kafka.consumer import ConsumerLoop
from shared.kafka.deadletters import DeadLetters
from shared.kafka.envelope import models_by_type
from shared.kafka.log import LogUnavailable, Record, read_to_end
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.testing.clock import START
from tests.support.aggregator_process import AggregatorProcess
from tests.support.command import Ran, ratchet
from tests.support.secure_kafka import SCRAM_USER, SecureKafka, allow, password_of
from tests.support.waiting import eventually

TENANTS = "acme,umbrella"
SERVICES = ("aggregator", "cli", "feedback", "inference", "rollout", "router", "training")
USERS = [f"ratchet-{name}" for name in (*SERVICES, "tenant-acme", "tenant-umbrella")]
REFUSED_S = 2.0


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    """The broker with the topics, and with the ACLs that the command prints."""
    with SecureKafka(tmp_path_factory.mktemp("secure"), USERS) as started:
        env = started.variables("admin") | {"RATCHET_TENANTS": TENANTS}
        assert (created := ratchet("topics", "apply", env=env)).status == 0, created.err
        rules = ratchet("kafka", "acls", "--json", env=env).json
        scrammed = [
            rule | {"principal": f"User:{SCRAM_USER}"}
            for rule in rules
            if rule["principal"] == "User:ratchet-feedback"
        ]
        asyncio.run(allow(started.connection("admin"), [*rules, *scrammed]))
        yield started


@asynccontextmanager
async def opened(connection: KafkaConnection) -> AsyncIterator[KafkaLog]:
    log = KafkaLog(connection, source="/ratchet/test")
    try:
        yield log
    finally:
        await log.stop()


@pytest.mark.parametrize(
    ("user", "mechanism"), [("ratchet-feedback", "PLAIN"), (SCRAM_USER, "SCRAM-SHA-512")]
)
async def test_producer_consumer_group_and_tail_log_in(
    broker: SecureKafka, user: str, mechanism: str
) -> None:
    connection = broker.connection(user, mechanism)
    seen: list[str] = []

    async def handle(_: Event, record: Record) -> None:
        seen.append(record.key)

    async with opened(connection) as log, opened(broker.connection("ratchet-tenant-acme")) as acme:
        await log.append(FEEDBACK, key=user, value=b"{}")
        assert isinstance(await read_to_end(log, API_KEYS, timeout_s=60), list)
        tick = Tick(at=START, partition=0)
        await acme.publish(intake_topic("acme"), key=user, event=tick, event_id=user)
        loop = ConsumerLoop(
            connection,
            group="ratchet.feedback-intake",
            handler=handle,
            models=models_by_type(Tick),
            dead_letters=DeadLetters(log, service="test", redact=str, metrics=CollectorRegistry()),
            topics=[intake_topic("acme")],
        )
        stop = asyncio.Event()
        running = asyncio.create_task(loop.run(stop))
        await eventually(lambda: user in seen, "the record handled")
        stop.set()
        await running


async def test_a_client_certificate_is_presented(broker: SecureKafka) -> None:
    await broker.by_certificate().check()
    with pytest.raises(Exception, match=r"localhost:\d+: .+"):
        await dataclasses.replace(broker.by_certificate(), cert_file=None).check()


async def test_the_aggregators_worker_logs_in(broker: SecureKafka, tmp_path: Path) -> None:
    worker = AggregatorProcess(
        broker.bootstrap, tmp_path, environment=broker.variables("ratchet-aggregator")
    ).start()
    try:
        await worker.ready(60)
        async with opened(broker.connection("ratchet-aggregator")) as log:

            async def ticked() -> bool:
                return bool(await read_to_end(log, TICKS, timeout_s=60))

            await eventually(ticked, "a tick written")
    finally:
        worker.stop()
    assert password_of("ratchet-aggregator") not in worker.log_path.read_text()


def list_keys(env: dict[str, str]) -> Ran:
    return ratchet("keys", "list", "--json", env=env)


async def test_the_command_logs_in_and_says_why_it_may_not(
    broker: SecureKafka, tmp_path: Path
) -> None:
    env = broker.variables("ratchet-cli")
    ran = await asyncio.to_thread(list_keys, env)
    assert (ran.status, ran.json) == (0, []), ran.err
    wrong = tmp_path / "wrong"
    wrong.write_text("not-the-password")
    ran = await asyncio.to_thread(list_keys, env | {"RATCHET_KAFKA_PASSWORD_FILE": str(wrong)})
    assert ran.status == 3
    assert "Invalid username or password" in ran.err
    assert "not-the-password" not in ran.err
    del env["RATCHET_KAFKA_CA_FILE"]
    ran = await asyncio.to_thread(list_keys, env)
    assert ran.status == 3
    assert "certificate verify failed" in ran.err


async def test_a_wrong_password_is_named_by_producer_and_tail(
    broker: SecureKafka, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not-the-password")
    connection = dataclasses.replace(broker.connection("ratchet-router"), password_file=wrong)
    async with opened(connection) as log:
        with pytest.raises(LogUnavailable, match="Invalid username or password") as raised:
            await log.append(FEEDBACK, key="k", value=b"v")
    assert "not-the-password" not in str(raised.value)


async def test_a_tenants_principal_can_write_its_intake_and_nothing_else(
    broker: SecureKafka,
) -> None:
    async with opened(broker.connection("ratchet-tenant-acme")) as log:
        await log.append(intake_topic("acme"), key="k", value=b"v")
        for topic in (intake_topic("umbrella"), FEEDBACK, API_KEYS):
            with pytest.raises(LogUnavailable):
                await log.append(topic, key="k", value=b"v", timeout_s=REFUSED_S)
        for topic in (intake_topic("umbrella"), FEEDBACK, API_KEYS):
            with pytest.raises(LogUnavailable):
                await read_to_end(log, topic, timeout_s=REFUSED_S)
