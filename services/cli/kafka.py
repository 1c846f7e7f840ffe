"""Kafka and Redis connections of one command."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from services.cli.errors import CliError, Exit, unreachable
from services.cli.settings import CliSettings

if TYPE_CHECKING:
    from shared.contracts.events.base import Event
    from shared.kafka.log import EventLog
    from shared.registry.versions import Registry
    from shared.registry.view import RoutingView

T = TypeVar("T")
E = TypeVar("E", bound="Event")
SOURCE = "/ratchet/cli"
READ_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 10.0


def with_log(settings: CliSettings, work: Callable[[EventLog], Awaitable[T]]) -> T:
    """Run `work` with the event log.

    Raises:
        CliError: Kafka gave no answer, or what was asked for is refused.

    """
    from shared.credentials import CredentialsUnreadable
    from shared.errors import RatchetError
    from shared.kafka.encrypted_log import encrypting
    from shared.kafka.log import LogUnavailable
    from shared.kafka.producer import KafkaLog
    from shared.kafka.security import KafkaConnection

    async def run() -> T:
        brokers = KafkaLog(
            KafkaConnection.of(settings.kafka), source=SOURCE, client_id="ratchet-cli"
        )
        try:
            log = encrypting(brokers, settings.kafka, source=SOURCE)
        except CredentialsUnreadable as error:
            raise CliError(str(error), Exit.usage) from None
        try:
            return await work(log)
        except LogUnavailable as error:
            raise _unreachable(settings, error) from error
        except RatchetError as error:
            raise CliError(error.detail, Exit.refused) from None
        finally:
            await log.stop()

    return run_with_kafka(settings, run)


async def read_events(log: EventLog, topics: Sequence[str], *models: type[E]) -> list[E]:
    """The events of these types on some topics, as they came; none that cannot be read.

    Raises:
        LogUnavailable: the topics' end was not reached in time.

    """
    from shared.kafka import log as event_log

    return await event_log.read_events(log, topics, *models, timeout_s=READ_TIMEOUT_S)


async def read_registry(log: EventLog) -> Registry:
    """The registry of versions as the event log has it; records that cannot be read left out.

    Raises:
        LogUnavailable: the topic's end was not reached in time.

    """
    from shared.contracts.topics import VERSIONS
    from shared.kafka.log import read_to_end
    from shared.registry.versions import Registry

    registry = Registry()
    for record in await read_to_end(log, VERSIONS, timeout_s=READ_TIMEOUT_S):
        with contextlib.suppress(ValueError):
            registry.apply(record.key, record.value)
    return registry


def run_with_kafka(settings: CliSettings, work: Callable[[], Awaitable[T]]) -> T:
    """Run `work`, which needs Kafka, once Kafka is known to answer.

    Raises:
        CliError: Kafka gave no answer; readers that try again for long are spared the wait.

    """
    from aiokafka.errors import KafkaError

    from shared.kafka.security import KafkaConnection
    from shared.observability.logging import configure_logging

    configure_logging("cli", "error")
    # What the client would log is what the command says in its own words.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

    async def run() -> T:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await KafkaConnection.of(settings.kafka).check()
        return await work()

    try:
        return asyncio.run(run())
    except TimeoutError as error:
        raise _unreachable(settings, "timed out") from error
    except (KafkaError, OSError) as error:
        raise _unreachable(settings, error) from error


def _unreachable(settings: CliSettings, error: object) -> CliError:
    return unreachable("Kafka", settings.kafka.kafka_bootstrap, error, "RATCHET_KAFKA_BOOTSTRAP")


async def with_view(settings: CliSettings, work: Callable[[RoutingView], Awaitable[T]]) -> T:
    """Run `work` with the routing view.

    Raises:
        CliError: Redis gave no answer.

    """
    from redis.exceptions import RedisError

    from shared.credentials import CredentialsUnreadable
    from shared.registry.connection import RedisCluster, connect_redis, refuse_cluster
    from shared.registry.view import RoutingView

    try:
        seal = settings.redis.redis_seal()
    except CredentialsUnreadable as error:
        raise CliError(str(error), Exit.usage) from None
    redis = connect_redis(settings.redis, socket_timeout=5, socket_connect_timeout=5)
    try:
        async with redis:
            await refuse_cluster(redis)
            return await work(RoutingView(redis, seal))
    except RedisCluster as error:
        raise CliError(str(error), Exit.usage) from None
    except (RedisError, OSError) as error:
        raise unreachable(
            "Redis", settings.redis.redis_address, error, "RATCHET_REDIS_URL"
        ) from error
