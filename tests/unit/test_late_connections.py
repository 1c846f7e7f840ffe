"""What a server of the tests accepted in the moment that it closed is closed too."""

from __future__ import annotations

import asyncio
import gc
import socket
from typing import Any


def test_connection_accepted_as_the_server_closes_is_closed() -> None:
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        assert runner.run(_answer_to_a_late_connection()) == b""
    gc.collect()  # an open socket is a warning, and that an error


async def _answer_to_a_late_connection() -> bytes:
    loop: Any = asyncio.get_running_loop()
    accept = loop._accept_connection
    servers: list[asyncio.Server] = []

    def accept_and_close(*arguments: Any) -> None:
        accept(*arguments)
        servers[0].close()

    loop._accept_connection = accept_and_close
    servers.append(await asyncio.start_server(lambda *_: None, "127.0.0.1", 0))
    address = servers[0].sockets[0].getsockname()
    client = await asyncio.to_thread(socket.create_connection, address, 10)
    with client:
        return await asyncio.to_thread(client.recv, 1)
