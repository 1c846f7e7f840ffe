"""Closes what a test's server accepted in the moment that it closed.

Asyncio makes a connection's transport one step after it accepted it. Where the server closes between
the two, that fails in Python 3.11 and the socket stays open until the garbage collector finds it: a
warning in whichever test then runs.
"""

from __future__ import annotations

import socket
from asyncio import Server
from asyncio.selector_events import BaseSelectorEventLoop
from typing import Any

import pytest


def close_late_connections(patch: pytest.MonkeyPatch) -> None:
    """Let servers of this process close connections that came too late for them."""
    accept: Any = vars(BaseSelectorEventLoop)["_accept_connection2"]

    async def accepted(
        loop: BaseSelectorEventLoop,
        protocol_factory: Any,
        connection: socket.socket,
        extra: Any,
        sslcontext: Any = None,
        server: Server | None = None,
        *more: Any,
    ) -> None:
        if server is not None and not server.sockets:
            connection.close()
            return
        await accept(loop, protocol_factory, connection, extra, sslcontext, server, *more)

    patch.setattr(BaseSelectorEventLoop, "_accept_connection2", accepted)
