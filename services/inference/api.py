"""The agent's HTTP interface."""

from __future__ import annotations

import math
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from services.inference.agent import Agent, Engine
from services.inference.errors import InferenceError
from services.inference.reconcile import Slot
from shared.contracts.events import Identifier
from shared.keys import Forbidden, KeyRing, Permission, Unauthenticated
from shared.observability.health import AsgiApp, OpsApp, Receive, Scope, Send


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


def create_app(agent: Agent, engine: Engine, keys: KeyRing) -> FastAPI:
    """The application: what is loaded here, and people's word on what was refused."""
    app = FastAPI(title="Ratchet adapter agent", docs_url=None, redoc_url=None)

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
        return failure(error.status, error.code, str(error))

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


def failure(status: int, code: str, message: str) -> JSONResponse:
    """An error as JSON."""
    return JSONResponse({"error": {"code": code, "message": message}}, status)
