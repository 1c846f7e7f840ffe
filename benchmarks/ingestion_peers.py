"""Peers of the feedback service: endpoints that take the same requests and store nothing."""

from __future__ import annotations

import asyncio

import uvicorn
import uvloop
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from shared.http.asgi import Receive, Scope, Send, respond
from shared.http.server import serve


class Body(BaseModel):
    """What the second peer checks."""

    trace_id: str
    type: str
    value: int
    user_id: str
    metadata: dict[str, str]


def peer_app(kind: str) -> FastAPI:
    """A bare endpoint: what the web framework alone costs."""
    app = FastAPI()
    if kind == "raw":

        @app.post("/v1/feedback", status_code=202)
        async def raw(request: Request) -> Response:
            await request.body()
            return Response(b'{"ok":true}', 202, media_type="application/json")

    else:

        @app.post("/v1/feedback", status_code=202)
        async def checked(body: Body) -> dict[str, str]:
            return {"trace_id": body.trace_id}

    return app


async def bare_app(scope: Scope, receive: Receive, send: Send) -> None:
    """What every ASGI application does for a POST: the bound."""
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        await respond(send, 202, b'{"ok":true}', b"application/json")


def serve_peer(kind: str, port: int) -> None:
    """Run a peer until it is ended."""
    if kind == "bare":
        uvloop.run(serve(bare_app, host="127.0.0.1", port=port, stop=asyncio.Event()))
    else:
        uvicorn.run(peer_app(kind), host="127.0.0.1", port=port, log_level="error")
