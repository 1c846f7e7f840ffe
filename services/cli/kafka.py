"""The event log and Redis for one command."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from services.cli.errors import unreachable
from services.cli.settings import CliSettings

if TYPE_CHECKING:
    from shared.kafka.log import EventLog
    from shared.registry.view import RoutingView

T = TypeVar("T")
SOURCE = "/ratchet/cli"
READ_TIMEOUT_S = 60.0


def with_log(settings: CliSettings, work: Callable[[EventLog], Awaitable[T]]) -> T:
    """Run `work` with the event log.

    Raises:
        CliError: Kafka gave no answer.

    """
    from aiokafka.errors import KafkaError

    from shared.kafka.log import LogUnavailable
    from shared.kafka.producer import KafkaLog
    from shared.observability.logging import configure_logging

    configure_logging("cli", "error")

    async def run() -> T:
        log = KafkaLog(settings.kafka_bootstrap, source=SOURCE, client_id="ratchet-cli")
        try:
            return await work(log)
        finally:
            await log.stop()

    try:
        return asyncio.run(run())
    except (LogUnavailable, KafkaError, OSError) as error:
        raise unreachable(
            "Kafka", settings.kafka_bootstrap, error, "RATCHET_KAFKA_BOOTSTRAP"
        ) from error


async def with_view(settings: CliSettings, work: Callable[[RoutingView], Awaitable[T]]) -> T:
    """Run `work` with the routing view.

    Raises:
        CliError: Redis gave no answer.

    """
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    from shared.registry.view import RoutingView

    redis = Redis.from_url(settings.redis_url, socket_timeout=5, socket_connect_timeout=5)
    try:
        async with redis:
            return await work(RoutingView(redis))
    except (RedisError, OSError) as error:
        raise unreachable("Redis", settings.redis_url, error, "RATCHET_REDIS_URL") from error
