"""A TCP proxy in front of one Kafka broker that can cut its clients off from the group coordinator."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

HOST = "127.0.0.1"
GROUP_APIS = frozenset({8, 9, 11, 12, 13, 14})
"""OffsetCommit, OffsetFetch, JoinGroup, Heartbeat, LeaveGroup and SyncGroup: aiokafka sends them over a
connection of their own."""
PRODUCE = 0


class CoordinatorProxy:
    """Passes Kafka's frames on; while `cut`, none of a connection that has carried group requests.

    Answers that name the broker's address name the proxy's instead, so that clients stay on it.
    """

    def __init__(self, bootstrap: str) -> None:
        self._broker_port = int(bootstrap.rpartition(":")[2])
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.cut = False
        self.produced = 0
        """Produce requests passed on so far."""

    @property
    def address(self) -> str:
        return f"{HOST}:{self._port}"

    @property
    def _port(self) -> int:
        assert self._server is not None
        return self._server.sockets[0].getsockname()[1]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, reply: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            answers, broker = await asyncio.open_connection(HOST, self._broker_port)
        except OSError:
            reply.close()
            self._tasks.discard(task)
            return
        connection = _Connection(self)
        requests = asyncio.create_task(connection.pass_requests(client, broker))
        responses = asyncio.create_task(
            connection.pass_responses(answers, reply, self._broker_port, self._port)
        )
        try:
            await asyncio.wait({requests, responses}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (requests, responses):
                one.cancel()
            await asyncio.gather(requests, responses, return_exceptions=True)
            for writer in (broker, reply):
                writer.close()
            self._tasks.discard(task)


class _Connection:
    def __init__(self, proxy: CoordinatorProxy) -> None:
        self._proxy = proxy
        self._of_group = False

    async def pass_requests(
        self, client: asyncio.StreamReader, broker: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while frame := await _frame(client):
                api = int.from_bytes(frame[4:6], "big")
                self._of_group |= api in GROUP_APIS
                if self._of_group and self._proxy.cut:
                    continue
                self._proxy.produced += api == PRODUCE
                broker.write(frame)
                await broker.drain()

    async def pass_responses(
        self,
        broker: asyncio.StreamReader,
        client: asyncio.StreamWriter,
        broker_port: int,
        own_port: int,
    ) -> None:
        before, after = (
            HOST.encode() + port.to_bytes(4, "big") for port in (broker_port, own_port)
        )
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while frame := await _frame(broker):
                if self._of_group and self._proxy.cut:
                    continue
                client.write(frame.replace(before, after))
                await client.drain()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    size = await reader.readexactly(4)
    return size + await reader.readexactly(int.from_bytes(size, "big"))
