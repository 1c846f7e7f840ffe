"""Direct routes: POST endpoints of a FastAPI application, served past its routing and dependencies.

An endpoint that reads its request itself needs nothing of them, and they cost more than the reading,
checking and storing of one piece of feedback.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import FastAPI, Request, Response

from shared.http.asgi import Receive, Send

Endpoint = Callable[[Request], Awaitable[Response]]


class DirectApp(FastAPI):
    """FastAPI application with direct routes, each the same endpoint as its ordinary route.

    The ordinary route gives the OpenAPI document and answers other methods and mounted paths.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._direct: dict[str, Endpoint] = {}

    def serve_directly(self, path: str, endpoint: Endpoint) -> None:
        """Serve POST requests for exactly this path by an endpoint that raises no exception."""
        self._direct[path] = endpoint

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and scope["method"] == "POST":
            endpoint = self._direct.get(scope["path"])
            if endpoint is not None:
                response = await endpoint(Request(scope, receive))
                await response(scope, receive, send)
                return
        await super().__call__(scope, receive, send)
