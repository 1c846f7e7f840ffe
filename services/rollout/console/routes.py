"""Routes of what operators see and do beside rollouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from services.rollout.console.operator_actions import (
    ActionRequest,
    EraseRequest,
    IssueKeyRequest,
    OperatorActions,
    ReplayRequest,
    RotateKeyRequest,
    TrainRequest,
)
from services.rollout.console.operator_views import OperatorViews
from shared.keys import ApiKey

Target = Annotated[int, Query(ge=1, le=1_000_000, description="pairs that a week should bring")]
KeyOf = Callable[[Request], ApiKey]
"""The key that a request was authenticated with."""


def operator_routes(views: OperatorViews, actions: OperatorActions, key_of: KeyOf) -> APIRouter:
    """Reads, then what operators do."""
    router = APIRouter(prefix="/v1")

    @router.get("/versions/differences")
    async def differences(first: str, second: str) -> dict[str, Any]:
        return views.differences(first, second)

    @router.get("/training/jobs")
    async def jobs() -> dict[str, Any]:
        return {"jobs": await views.jobs()}

    @router.get("/datasets")
    async def datasets() -> dict[str, Any]:
        return {"datasets": views.datasets()}

    @router.get("/keys")
    async def keys() -> dict[str, Any]:
        return {"keys": await views.keys()}

    @router.get("/dead-letters")
    async def dead_letters() -> dict[str, Any]:
        return {"dead_letters": await views.dead_letters()}

    @router.get("/erasures")
    async def erasures() -> dict[str, Any]:
        return {"erasures": await views.erasures()}

    @router.get("/quality")
    async def quality() -> dict[str, Any]:
        return await views.quality()

    @router.get("/reports/weekly")
    async def weekly(week: str = "", model: str = "", target: Target = 100) -> dict[str, Any]:
        return await views.report(week, model, target)

    router.include_router(_actions(actions, key_of))
    return router


def _actions(actions: OperatorActions, key_of: KeyOf) -> APIRouter:
    router = APIRouter()

    @router.post("/training/jobs", status_code=202)
    async def train(request: Request, body: TrainRequest) -> dict[str, Any]:
        return await actions.train(body, key_of(request))

    @router.post("/training/jobs/{job_id}/cancel")
    async def cancel(request: Request, job_id: str, body: ActionRequest) -> dict[str, Any]:
        return await actions.cancel(job_id, body, key_of(request))

    @router.post("/keys", status_code=201)
    async def issue(request: Request, response: Response, body: IssueKeyRequest) -> dict[str, Any]:
        response.headers["Cache-Control"] = "no-store"
        return await actions.issue(body, key_of(request))

    @router.post("/keys/{key_id}/rotate", status_code=201)
    async def rotate(
        request: Request, response: Response, key_id: str, body: RotateKeyRequest
    ) -> dict[str, Any]:
        response.headers["Cache-Control"] = "no-store"
        return await actions.rotate(key_id, body, key_of(request))

    @router.post("/keys/{key_id}/revoke")
    async def revoke(request: Request, key_id: str, body: ActionRequest) -> dict[str, Any]:
        return await actions.revoke(key_id, body, key_of(request))

    @router.post("/erasures", status_code=202)
    async def erase(request: Request, body: EraseRequest) -> dict[str, Any]:
        return await actions.erase(body, key_of(request))

    @router.post("/dead-letters/replay")
    async def replay(request: Request, body: ReplayRequest) -> dict[str, Any]:
        return await actions.replay(body, key_of(request))

    return router
