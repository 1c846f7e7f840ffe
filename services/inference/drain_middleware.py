"""Connection draining inside vLLM: while a marker file exists, new requests get 503.

vLLM imports this by its option `--middleware`, in its own environment: standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

DRAIN_MARKER = "RATCHET_ENGINE_DRAIN_MARKER"
"""Variable with the marker's path."""
BODY = b'{"error":{"message":"the engine stops and takes no new requests","type":"unavailable"}}'

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


class DrainMiddleware:
    """ASGI middleware that refuses every POST while the engine drains; what runs goes on.

    The refusal closes its connection: behind a Service of Kubernetes the next one leads elsewhere.
    """

    def __init__(self, app: Callable[[_Message, _Receive, _Send], Awaitable[None]]) -> None:
        self._app = app
        self._marker = Path(os.environ[DRAIN_MARKER])

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and scope["method"] == "POST" and self._drains():
            await self._refuse(receive, send)
        else:
            await self._app(scope, receive, send)

    def _drains(self) -> bool:
        return self._marker.exists()

    async def _refuse(self, receive: _Receive, send: _Send) -> None:
        # A connection closed over an unread body is reset, and its client may lose the refusal.
        while (await receive()).get("more_body"):
            pass
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(BODY)).encode()),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": BODY})
