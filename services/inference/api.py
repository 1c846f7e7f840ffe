"""HTTP interface of the adapter agent."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, MutableMapping
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from services.inference.agent import Agent, EngineControl
from services.inference.errors import BodyTooLarge, BodyTooSlow, InferenceError
from services.inference.reconcile import Slot
from shared.contracts.events.api_keys import Permission
from shared.contracts.events.base import Identifier
from shared.keys import Forbidden, KeyRing, Unauthenticated
from shared.observability.health import AsgiApp, OpsApp, Receive, Scope, Send

MAX_BODY_BYTES = 65_536
"""Above any `AcceptRequest`, however its characters are escaped."""
DISCARDED_BYTES = 16 * MAX_BODY_BYTES
"""How much of a body is read, and thrown away, so that its sender reads the refusal."""
BODY_TIMEOUT_S = 10.0


class AcceptRequest(BaseModel):
    """Who accepts, and why."""

    model_config = ConfigDict(extra="forbid")
    actor: Identifier
    reason: str = Field(min_length=1, max_length=2000)


class WithOps:
    """An application that answers the three routes of operations first."""

    def __init__(self, app: AsgiApp, ops: OpsApp) -> None:
        self._app = app
        self._ops = ops

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not await self._ops.serve(scope, send):
            await self._app(scope, receive, send)


class BoundedBodies:
    """Reads each request's body before the application does, and refuses what is too much.

    What the client announces is not asked: the bytes that arrive are counted, chunked or not.
    """

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or answer 413 or 408 and close the connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await whole_body(receive)
        except TimeoutError:
            slow = BodyTooSlow(f"the body did not arrive within {BODY_TIMEOUT_S:g} s")
            await refusal(slow, {"connection": "close"})(scope, receive, send)
            return
        except BodyTooLarge as error:
            await refusal(error, {"connection": "close"})(scope, receive, send)
            return
        if body is None:
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> MutableMapping[str, Any]:
            return messages.pop() if messages else await receive()

        await self._app(scope, again, send)


async def whole_body(receive: Receive) -> bytes | None:
    """A request's body, or None where the client left before it was complete.

    Raises:
        BodyTooLarge: it has more than `MAX_BODY_BYTES`.

    """
    parts: list[bytes] = []
    size, more = 0, True
    while more and size <= DISCARDED_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(part)
        if size <= MAX_BODY_BYTES:
            parts.append(part)
    if size > MAX_BODY_BYTES:
        raise BodyTooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes; send a shorter one")
    return b"".join(parts)


def create_app(agent: Agent, engine: EngineControl, keys: KeyRing) -> FastAPI:
    """The application: what is loaded here, and people's word on what was refused."""
    app = FastAPI(title="Ratchet adapter agent", docs_url=None, redoc_url=None)
    app.add_middleware(BoundedBodies)

    @app.get("/v1/adapters")
    async def adapters() -> dict[str, Any]:
        state = engine.state
        return {
            "engine": {
                "ready": state.ready,
                "generation": state.generation,
                "base_model": agent.base,
                "reason": state.reason,
            },
            "adapters": [described(slot) for slot in agent.adapters()],
        }

    @app.post("/v1/adapters/{version}/accept")
    async def accept(
        version: str,
        body: AcceptRequest,
        authorization: Annotated[str | None, Header()] = None,
    ) -> dict[str, Any]:
        keys.authenticate(authorization, Permission.operate)
        return agent.accept(version, body.actor, body.reason).model_dump(mode="json")

    @app.exception_handler(InferenceError)
    async def refused(_request: Request, error: InferenceError) -> JSONResponse:
        return refusal(error)

    @app.exception_handler(Unauthenticated)
    async def unauthenticated(_request: Request, error: Unauthenticated) -> JSONResponse:
        return failure(401, "unauthenticated", str(error))

    @app.exception_handler(Forbidden)
    async def forbidden(_request: Request, error: Forbidden) -> JSONResponse:
        return failure(403, "forbidden", str(error))

    return app


def described(slot: Slot) -> dict[str, Any]:
    """An adapter as callers see it; differences in nats."""
    return {
        "version": slot.version,
        "state": slot.state,
        "reason": slot.reason,
        "fault": slot.fault,
        "difference": finite(slot.difference),
        "distances": {name: finite(distance) for name, distance in slot.distances.items()},
    }


def finite(difference: float | None) -> float | None:
    """JSON has no word for a figure that is none."""
    return difference if difference is not None and math.isfinite(difference) else None


def refusal(error: InferenceError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """One of our own errors as JSON."""
    return failure(error.status, error.code, str(error), headers)


def failure(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error as JSON."""
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)
