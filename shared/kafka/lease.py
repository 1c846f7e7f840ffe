"""Lease: of all processes that ask for it one holds it, until it ends, stands still or is cut off.

It is a partition that a consumer group gives to one of its members, and the brokers' own session
timeout takes from a member that is no longer heard.
"""

# pyright: basic, reportMissingTypeStubs=false
# aiokafka has no types.
from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection
from typing import Protocol

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import GroupAuthorizationFailedError, IllegalStateError, KafkaError

from shared.backoff import Backoff
from shared.kafka.lease_terms import LeaseAssignor
from shared.kafka.security import KafkaConnection, stop_consumer
from shared.observability.events import Unavailable

log = structlog.get_logger(__name__)

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 10.0
CONNECT_TIMEOUT_S = 15.0
RENEWALS = 5
"""Renewals in a session."""


class Lease(Protocol):
    """What one process of many may do alone."""

    def held(self) -> bool:
        """Whether it was ours less than half a session ago, by the brokers' word."""
        ...

    def since(self) -> float:
        """When the group last gave it to us, on the monotonic clock; infinite while it is not ours.

        It is ours until the group says otherwise, though the brokers may be silent: `held`.
        """
        ...

    async def lost(self) -> None:
        """Wait until it is not ours, by the group's word."""
        ...


class KafkaLease:
    """A Lease on real brokers: partition 0 of a topic, in a consumer group of its own.

    Members that come and go do not move it. Each renewal commits an offset, which the group's
    coordinator takes from its present members alone.
    """

    def __init__(
        self, connection: KafkaConnection, *, group: str, topic: str, session_s: float
    ) -> None:
        """`session_s` is how long a member may be silent before another gets the lease."""
        self._connection = connection
        self._group = group
        self._partition = TopicPartition(topic, 0)
        self._session_s = session_s
        self._assignor = LeaseAssignor(topic, joining=self._joins, told=self._told)
        self._joined_at = self._renewed_at = -math.inf
        self._since = math.inf
        self._lost = asyncio.Event()
        self._lost.set()

    def held(self) -> bool:
        """See Lease.held."""
        sure_until = self._renewed_at + self._session_s / 2
        return self._since < math.inf and time.monotonic() < sure_until

    def since(self) -> float:
        """See Lease.since."""
        return self._since

    async def lost(self) -> None:
        """See Lease.lost."""
        await self._lost.wait()

    async def run(self) -> None:
        """Ask for the lease and keep it, until cancelled; it is then given back."""
        backoff = Backoff(BACKOFF_FIRST_S, BACKOFF_MAX_S)
        while True:
            consumer: AIOKafkaConsumer | None = None
            try:
                consumer = self._client()
                # A joining waits for members that are silent: a session at most.
                async with asyncio.timeout(CONNECT_TIMEOUT_S + self._session_s):
                    await self._connection.start(consumer)
                backoff.reset()
                await self._keep(consumer)
            except (TimeoutError, KafkaError) as error:
                hint = ""
                if isinstance(error, GroupAuthorizationFailedError):
                    hint = f"; it may not read group {self._group}: see `ratchet kafka acls`"
                log.warning(
                    Unavailable.kafka,
                    during="lease",
                    group=self._group,
                    error=(str(error) or "timed out") + hint,
                )
                await asyncio.sleep(backoff.next_s())
            finally:
                await stop_consumer(consumer, CONNECT_TIMEOUT_S)

    def _client(self) -> AIOKafkaConsumer:
        session_ms = round(self._session_s * 1000)
        consumer = AIOKafkaConsumer(
            **self._connection.client_arguments(),
            group_id=self._group,
            partition_assignment_strategy=(self._assignor,),
            enable_auto_commit=False,
            auto_offset_reset="latest",
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=session_ms // RENEWALS,
            request_timeout_ms=round((CONNECT_TIMEOUT_S + self._session_s) * 1000),
        )
        consumer.subscribe([self._partition.topic], listener=_ReadsNothing(consumer))
        return consumer

    async def _keep(self, consumer: AIOKafkaConsumer) -> None:
        """Renew the lease while it is ours; a read raises what goes wrong with the group."""
        while True:
            if self._since < math.inf:
                await self._renew(consumer)
            await consumer.getmany(timeout_ms=round(self._session_s * 1000 / RENEWALS))

    async def _renew(self, consumer: AIOKafkaConsumer) -> None:
        asked_at = time.monotonic()
        try:
            async with asyncio.timeout(self._session_s / RENEWALS):
                # The topic's end, so that nothing that watches consumer lag sees any.
                await consumer.commit(await consumer.end_offsets([self._partition]))
        except (TimeoutError, KafkaError, IllegalStateError) as error:
            # A rebalance, an expulsion of which the group will tell, or an outage.
            log.info(
                Unavailable.kafka,
                during="lease_renewal",
                group=self._group,
                error=str(error) or "timed out",
            )
        else:
            self._renewed_at = asked_at

    def _joins(self) -> None:
        self._joined_at = time.monotonic()

    def _told(self, ours: bool) -> None:
        if ours:
            self._renewed_at = self._joined_at
            if self._since == math.inf:
                log.info("lease.granted", group=self._group)
            # Anew by each word, as it may have been another's between two.
            self._since = time.monotonic()
            self._lost.clear()
        else:
            if self._since < math.inf:
                log.warning("lease.lost", group=self._group)
            self._since = math.inf
            self._lost.set()


class _ReadsNothing(ConsumerRebalanceListener):
    """Keeps a consumer from reading what it is assigned."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Nothing is read, so nothing is left to do."""

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self._consumer.pause(*assigned)
