"""Streamed responses whose generator is closed however they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


class StreamedResponse(StreamingResponse):
    """Starlette's, but for a client that leaves: the generator is closed before the request ends.

    Starlette drops it where it stands, so that what its `finally` gives back, as a turn to read the
    log, waits for the garbage collector; and it cancels each wait of that `finally` anew.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the stream until it ends or the client leaves."""
        generator = cast("AsyncGenerator[str | bytes]", self.body_iterator)
        async with aclosing(generator):
            sending = asyncio.create_task(self.stream_response(send))
            leaving = asyncio.create_task(self.listen_for_disconnect(receive))
            try:
                await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            finally:
                sending.cancel()
                leaving.cancel()
                await asyncio.gather(sending, leaving, return_exceptions=True)
        if not sending.cancelled():
            sending.result()
