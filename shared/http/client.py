"""HTTP requests with a deadline, for clients on aiohttp."""

# pyright: strict
from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp


@asynccontextmanager
async def request_within(
    timeout_s: float,
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    *,
    connect_s: float | None = None,
    **options: Any,
) -> AsyncGenerator[aiohttp.ClientResponse]:
    """A request; its answer must be read within the block.

    `ClientTimeout.total`, which aiohttp sets to 300 s by default, loses a cancellation that comes as
    it fires: the task that was to end goes on. The deadline here keeps it.

    Args:
        timeout_s: From connecting to the end of the block.
        session: The client.
        method: HTTP method.
        url: Where to.
        connect_s: Longest wait for a connection, a free one of the session's included.
        options: Others of `ClientSession.request`: `data`, `json`, `headers` and the like.

    Raises:
        TimeoutError: a deadline passed.
        aiohttp.ClientError: there was no answer.

    """
    waits = aiohttp.ClientTimeout(total=None, connect=connect_s)
    async with (
        asyncio.timeout(timeout_s),
        session.request(method, url, timeout=waits, **options) as response,
    ):
        yield response
