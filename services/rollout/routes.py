"""Routes of the control API: authentication, limits of bodies, and errors as answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from services.rollout import answers as said
from services.rollout.access import KEY, Access, key_of
from services.rollout.api import COMMANDS, RolloutApi
from services.rollout.console.files import FILES, console_routes
from services.rollout.console.operator_actions import OperatorActions
from services.rollout.console.operator_views import OperatorViews
from services.rollout.console.routes import operator_routes
from services.rollout.evaluations import EvaluateRequest
from services.rollout.registrations import RegisterRequest
from services.rollout.requests import (
    CommandRequest,
    ExplainRequest,
    HoldoutRequest,
    RetireRequest,
    StartRequest,
)
from services.rollout.strategy_files import json_schema
from shared.http.asgi import Scope
from shared.http.body import GuardedApp
from shared.http.openapi import answers, describe, text_answer
from shared.http.problems import handle_errors
from shared.http.streaming import StreamedResponse

MAX_BODY_BYTES = 256 * 1024
BODY_TIMEOUT_S = 10.0
MAX_PAGE = 1_000

Page = Annotated[int, Query(ge=1, le=MAX_PAGE)]
Verb = Annotated[str, Path(json_schema_extra={"enum": [*COMMANDS]})]


def create_app(
    api: RolloutApi, views: OperatorViews, actions: OperatorActions, access: Access
) -> FastAPI:
    """The application. It serves only behind `guarded`, which authenticates what is no page."""
    app = FastAPI(title="Ratchet rollout", version="1", docs_url=None, redoc_url=None)
    describe(app, problems=(401, 403, 404, 422, 503), writing=(400, 408, 409, 413))
    app.include_router(console_routes())
    app.include_router(operator_routes(views, actions, access))
    app.include_router(_rollouts(api, access))
    app.include_router(_strategies_and_versions(api, access))
    handle_errors(app)
    return app


def _rollouts(api: RolloutApi, access: Access) -> APIRouter:
    router = APIRouter(prefix="/v1/rollouts")
    of_rollout = [Depends(access.rollout)]

    @router.post("", dependencies=[Depends(access.model_of_body)], **answers(said.RolloutView, 201))
    async def start(request: Request, body: StartRequest) -> dict[str, Any]:
        return await api.start(body, key_of(request))

    @router.get("", dependencies=[Depends(access.listed)], **answers(said.RolloutList))
    async def rollouts(request: Request, model: str = "", limit: Page = 50) -> dict[str, Any]:
        return {"rollouts": api.rollouts(model, limit, access.scope_of(request))}

    @router.get(
        "/current", dependencies=[Depends(access.model_of_query)], **answers(said.CurrentRollout)
    )
    async def current(model: str) -> dict[str, Any]:
        return api.current(model)

    @router.get("/{rollout_id}", dependencies=of_rollout, **answers(said.RolloutView))
    async def rollout(rollout_id: str) -> dict[str, Any]:
        return api.rollout(rollout_id)

    @router.get("/{rollout_id}/decisions", dependencies=of_rollout, **answers(said.DecisionPage))
    async def decisions(
        rollout_id: str, after: str = "", limit: Page = 200, *, moves: bool = False
    ) -> dict[str, Any]:
        return api.decisions(rollout_id, after, limit, moves=moves)

    @router.get("/{rollout_id}/replay", dependencies=of_rollout, **answers(said.ReplayedRollout))
    async def replayed(rollout_id: str) -> dict[str, Any]:
        return await api.replay(rollout_id)

    @router.get("/{rollout_id}/intervals", dependencies=of_rollout, **answers(said.IntervalList))
    async def intervals(rollout_id: str) -> dict[str, Any]:
        return {"intervals": api.intervals(rollout_id)}

    @router.get(
        "/{rollout_id}/slices",
        dependencies=of_rollout,
        response_class=Response,
        responses=text_answer("text/csv", said="A row for each look, segment and arm"),
    )
    async def slices(rollout_id: str) -> StreamedResponse:
        pieces = api.slices(rollout_id)
        # What is wrong from the start is an answer of its own; later it ends the stream.
        first = await anext(pieces)

        async def whole() -> AsyncGenerator[str]:
            async with aclosing(pieces):
                yield first
                async for piece in pieces:
                    yield piece

        return StreamedResponse(whole(), media_type="text/csv")

    @router.post(
        "/{rollout_id}/{verb}", dependencies=of_rollout, **answers(said.RolloutView, 200, 201)
    )
    async def command(
        request: Request, rollout_id: str, verb: Verb, body: CommandRequest | None = None
    ) -> JSONResponse:
        done = await api.command(rollout_id, verb, body or CommandRequest(), key_of(request))
        return JSONResponse(done, status_code=201 if verb == "retry" else 200)

    return router


def _strategies_and_versions(api: RolloutApi, access: Access) -> APIRouter:
    router = APIRouter(prefix="/v1")
    listed, of_version = [Depends(access.listed)], [Depends(access.version)]
    of_query, of_body = [Depends(access.model_of_query)], [Depends(access.model_of_body)]

    @router.get("/strategies/schema", dependencies=listed, **answers(said.StrategySchema))
    async def schema() -> dict[str, Any]:
        return json_schema()

    @router.post("/strategies/explain", dependencies=of_body, **answers(said.ExplainedStrategy))
    async def explained(body: ExplainRequest) -> dict[str, Any]:
        return api.explain(body)

    @router.get("/versions", dependencies=listed, **answers(said.VersionList))
    async def versions(request: Request, model: str = "") -> dict[str, Any]:
        return {"versions": api.versions(model, access.scope_of(request))}

    @router.get("/holdout", dependencies=of_query, **answers(said.Holdout))
    async def holdout(model: str) -> dict[str, Any]:
        return api.holdout(model)

    @router.post("/holdout", dependencies=of_body, **answers(said.Holdout))
    async def set_holdout(request: Request, body: HoldoutRequest) -> dict[str, Any]:
        return await api.set_holdout(body, key_of(request))

    @router.post("/versions", dependencies=of_body, **answers(said.RegisteredVersion, 201))
    async def register(request: Request, body: RegisterRequest) -> dict[str, Any]:
        return await api.register(body, key_of(request))

    @router.post(
        "/versions/{version:path}/evaluation",
        dependencies=of_version,
        **answers(said.EvaluationProgress, 202),
    )
    async def evaluate(request: Request, version: str, body: EvaluateRequest) -> dict[str, Any]:
        return await api.evaluate(version, body, key_of(request))

    @router.post(
        "/versions/{version:path}/retire",
        dependencies=of_version,
        **answers(said.WholeVersion),
    )
    async def retire(request: Request, version: str, body: RetireRequest) -> dict[str, Any]:
        return await api.retire(version, body, key_of(request))

    @router.get("/versions/gain", dependencies=of_query, **answers(said.GainList))
    async def gains(model: str) -> dict[str, Any]:
        return {"gains": await api.gains(model)}

    @router.get("/versions/{version:path}", dependencies=of_version, **answers(said.WholeVersion))
    async def version(version: str) -> dict[str, Any]:
        return api.version(version)

    return router


def guarded(app: FastAPI, api: RolloutApi) -> GuardedApp:
    """The application behind authentication, a limit and a deadline for bodies."""

    def authorize(scope: Scope) -> None:
        if scope["path"] in FILES:
            return
        scope[KEY] = api.authenticate(Request(scope))

    return GuardedApp(app, authorize=authorize, limit=MAX_BODY_BYTES, timeout_s=BODY_TIMEOUT_S)
