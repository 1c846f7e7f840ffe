"""The writer sends nothing while the session lease has lapsed."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from aiokafka.errors import NoError

from services.aggregator.session_lease import SessionLease
from services.aggregator.writer import KafkaWriter
from shared.kafka.security import KafkaConnection

CONNECT_S = 6.0


class SlowProducer:
    """Stands in for aiokafka's client: connecting takes longer than the lease lasts."""

    def __init__(self, uptime: list[float]) -> None:
        self._uptime = uptime
        self._connected = False
        self.sent: list[Any] = []

    async def ready(self, node_id: int) -> bool:
        if not self._connected:
            self._uptime[0] += CONNECT_S
            self._connected = True
        return True

    async def send(self, node_id: int, request: Any) -> Any:
        self.sent.append(request)


async def test_a_request_waits_for_a_confirmed_heartbeat_once_its_connection_stands() -> None:
    uptime = [0.0]
    lease = SessionLease(10.0, now=lambda: uptime[0])
    lease.armed = True
    lease.answered(NoError.errno, 0.0)
    client = SlowProducer(uptime)
    writer = KafkaWriter(KafkaConnection("127.0.0.1:1"), guard=lambda: None, lease=lease)
    writer._guard_requests(SimpleNamespace(client=client))  # type: ignore[arg-type]
    sending = asyncio.create_task(client.send(0, "produce"))
    await asyncio.sleep(0.2)
    assert client.sent == []
    lease.answered(NoError.errno, uptime[0])
    await asyncio.wait_for(sending, 60)
    assert client.sent == ["produce"]


async def test_a_stall_is_looked_for_right_before_the_request_goes() -> None:
    uptime = [0.0]
    looks: list[float] = []
    client = SlowProducer(uptime)
    writer = KafkaWriter(
        KafkaConnection("127.0.0.1:1"),
        guard=lambda: looks.append(uptime[0]),
        lease=SessionLease(10.0, now=lambda: uptime[0]),
    )
    writer._guard_requests(SimpleNamespace(client=client))  # type: ignore[arg-type]
    await client.send(0, "produce")
    assert looks == [CONNECT_S]
