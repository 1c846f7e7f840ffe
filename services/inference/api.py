"""HTTP interface of the adapter agent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Request
from pydantic import BaseModel, ConfigDict, Field

from services.inference.acceptances import Acceptance
from services.inference.agent import Agent, EngineControl
from services.inference.errors import AcceptanceNotOnRecord
from services.inference.generation_api import GENERATION_PATHS, MAX_GENERATION_BYTES
from services.inference.reconcile import AdapterState, Slot
from shared.contracts.events.api_keys import Permission
from shared.contracts.events.audit import ActionAudited
from shared.contracts.events.base import OptionalIdentifier
from shared.contracts.topics import AUDIT
from shared.http.asgi import AsgiApp, Receive, Scope, Send
from shared.http.body import GuardedApp
from shared.http.openapi import answers, describe, problem_responses
from shared.http.problems import handle_errors
from shared.kafka.log import EventLog, LogUnavailable
from shared.keys import ApiKey, KeyRing, OutOfScope
from shared.registry.versions import Registry
from shared.tenants import ModelTenants

MAX_BODY_BYTES = 65_536
"""Above any `AcceptRequest`, however its characters are escaped."""
DISCARDED_BYTES = 16 * MAX_BODY_BYTES
"""Bytes of a refused body that are read and discarded, so that its sender reads the refusal."""
BODY_TIMEOUT_S = 10.0


class AcceptRequest(BaseModel):
    """Who accepts, and why."""

    model_config = ConfigDict(extra="forbid")
    on_behalf_of: OptionalIdentifier = ""
    reason: str = Field(min_length=1, max_length=2000)


class EngineView(BaseModel):
    """The engine behind the agent."""

    ready: bool
    generation: int = Field(description="counts its starts")
    base_model: str
    reason: str = Field(description="why it is not ready")


class AdapterView(BaseModel):
    """An adapter; differences in nats, null where one is not finite or not known."""

    version: str
    state: AdapterState
    reason: str
    fault: str
    difference: float | None
    distances: dict[str, float | None] = Field(description="to other adapters, by version")


class AdapterList(BaseModel):
    """The engine, and the state of each adapter."""

    engine: EngineView
    adapters: list[AdapterView]


@dataclass(frozen=True, slots=True)
class AdapterAccess:
    """Whose adapters a key with `operate` may accept: those of its tenant's models."""

    registry: Registry
    tenants: ModelTenants

    def check(self, key: ApiKey, version: str) -> None:
        """Refuse what is another tenant's.

        Raises:
            OutOfScope: it is.

        """
        known = self.registry.get(version)
        model = known.record.model if known else ""
        if not self.tenants.scope_of(key.tenant).has_model(model):
            raise OutOfScope("version", version, key.tenant)


def create_app(
    agent: Agent,
    engine: EngineControl,
    keys: KeyRing,
    generation: APIRouter,
    event_log: EventLog,
    access: AdapterAccess,
) -> FastAPI:
    """The application: adapters are listed and refused ones accepted; scores and moderation.

    An acceptance is on the audit topic of `event_log` before it counts.
    """
    app = FastAPI(title="Ratchet adapter agent", docs_url=None, redoc_url=None)
    describe(app)

    @app.get("/v1/adapters", **answers(AdapterList))
    async def adapters() -> dict[str, Any]:
        """The engine, and the state of each adapter."""
        state = engine.state
        return {
            "engine": {
                "ready": state.ready,
                "generation": state.generation,
                "base_model": agent.base,
                "reason": state.reason,
            },
            "adapters": [described(slot) for slot in agent.versions()],
        }

    refusals = problem_responses(400, 401, 403, 404, 408, 409, 413, 422, 503)

    @app.post("/v1/adapters/{version}/accept", responses={**refusals, 200: {"model": Acceptance}})
    async def accept(
        version: str,
        body: AcceptRequest,
        authorization: Annotated[str | None, Header()] = None,
    ) -> dict[str, Any]:
        """Let a version serve that was refused as too close to another."""
        key = keys.authenticate(authorization, Permission.operate)
        access.check(key, version)
        accepted = agent.acceptance(
            version, key.key_id, body.reason, on_behalf_of=body.on_behalf_of
        )
        await record(event_log, accepted, key.tenant)
        agent.accept(accepted)
        return accepted.model_dump(mode="json")

    app.include_router(generation)
    handle_errors(app)
    return app


async def record(event_log: EventLog, accepted: Acceptance, tenant: str) -> None:
    """Put an acceptance on record.

    Raises:
        AcceptanceNotOnRecord: the brokers did not acknowledge it.

    """
    event = ActionAudited(
        action="adapter.accepted",
        subject=accepted.version,
        tenant=tenant,
        actor=accepted.actor,
        on_behalf_of=accepted.on_behalf_of,
        reason=accepted.reason,
        at=accepted.at,
    )
    event_id = f"{accepted.version}:{accepted.at.isoformat()}"
    try:
        await event_log.publish(AUDIT, key=accepted.version, event=event, event_id=event_id)
    except LogUnavailable as error:
        raise AcceptanceNotOnRecord(
            f"the acceptance of {accepted.version!r} could not be put on record: {error}; "
            "nothing was accepted, try again"
        ) from None


def guarded(app: FastAPI, keys: KeyRing) -> AsgiApp:
    """The application behind authentication of what changes something, and bounded bodies."""

    def behind(permission: Permission, limit: int) -> GuardedApp:
        def authorize(scope: Scope) -> None:
            if scope["method"] not in ("GET", "HEAD"):
                keys.authenticate(Request(scope).headers.get("authorization"), permission)

        return GuardedApp(
            app,
            authorize=authorize,
            limit=limit,
            timeout_s=BODY_TIMEOUT_S,
            discard=DISCARDED_BYTES,
        )

    operated = behind(Permission.operate, MAX_BODY_BYTES)
    generated = behind(Permission.infer, MAX_GENERATION_BYTES)

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        inner = generated if scope.get("path") in GENERATION_PATHS else operated
        await inner(scope, receive, send)

    return dispatch


def described(slot: Slot) -> dict[str, Any]:
    """JSON view of an adapter; differences in nats."""
    return {
        "version": slot.version,
        "state": slot.state,
        "reason": slot.reason,
        "fault": slot.fault,
        "difference": finite(slot.difference),
        "distances": {name: finite(distance) for name, distance in slot.distances.items()},
    }


def finite(difference: float | None) -> float | None:
    """None for infinity and NaN, which JSON cannot hold."""
    return difference if difference is not None and math.isfinite(difference) else None
