"""Routes of what operators see and do beside rollouts."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from services.rollout.access import Access, key_of
from services.rollout.console import answers as said
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
from shared.http.openapi import answers

Target = Annotated[int, Query(ge=1, le=1_000_000, description="pairs that a week should bring")]


def operator_routes(views: OperatorViews, actions: OperatorActions, access: Access) -> APIRouter:
    """Reads, then what operators do."""
    router = APIRouter(prefix="/v1")
    listed = [Depends(access.listed)]

    @router.get(
        "/versions/differences",
        dependencies=[Depends(access.both_versions)],
        **answers(said.VersionDifferences),
    )
    async def differences(first: str, second: str) -> dict[str, Any]:
        return views.differences(first, second)

    @router.get("/training/jobs", dependencies=listed, **answers(said.TrainingJobs))
    async def jobs(request: Request) -> dict[str, Any]:
        return {"jobs": await views.jobs(access.scope_of(request))}

    @router.get("/datasets", dependencies=listed, **answers(said.DatasetList))
    async def datasets(request: Request) -> dict[str, Any]:
        return {"datasets": views.datasets(access.scope_of(request))}

    @router.get(
        "/datasets/{dataset_id}",
        dependencies=[Depends(access.dataset)],
        **answers(said.DatasetCard),
    )
    async def dataset(request: Request, dataset_id: str) -> dict[str, Any]:
        return views.dataset(dataset_id, access.scope_of(request))

    @router.get("/keys", dependencies=listed, **answers(said.KeyList))
    async def keys(request: Request) -> dict[str, Any]:
        return {"keys": await views.keys(access.scope_of(request))}

    @router.get("/dead-letters", dependencies=listed, **answers(said.DeadLetterList))
    async def dead_letters(request: Request) -> dict[str, Any]:
        return {"dead_letters": await views.dead_letters(access.scope_of(request))}

    @router.get("/erasures", dependencies=listed, **answers(said.ErasureList))
    async def erasures(request: Request) -> dict[str, Any]:
        return {"erasures": await views.erasures(access.scope_of(request))}

    @router.get("/quality", dependencies=listed, **answers(said.QualityReport))
    async def quality(request: Request) -> dict[str, Any]:
        return await views.quality(access.scope_of(request))

    @router.get(
        "/reports/weekly",
        dependencies=[Depends(access.model_if_named)],
        **answers(said.WeeklyReport),
    )
    async def weekly(
        request: Request, week: str = "", model: str = "", target: Target = 100
    ) -> dict[str, Any]:
        return await views.report(week, model, target, access.scope_of(request))

    router.include_router(_actions(actions, access))
    return router


def _actions(actions: OperatorActions, access: Access) -> APIRouter:
    router = APIRouter()
    of_api_key = [Depends(access.api_key)]

    @router.post(
        "/training/jobs",
        dependencies=[Depends(access.model_of_body)],
        **answers(said.StartedJob, 202),
    )
    async def train(request: Request, body: TrainRequest) -> dict[str, Any]:
        return await actions.train(body, key_of(request), access.scope_of(request))

    @router.post(
        "/training/jobs/{job_id}/cancel",
        dependencies=[Depends(access.job)],
        **answers(said.CancelledJob),
    )
    async def cancel(request: Request, job_id: str, body: ActionRequest) -> dict[str, Any]:
        return await actions.cancel(job_id, body, key_of(request))

    @router.post(
        "/keys", dependencies=[Depends(access.tenant_of_body)], **answers(said.NewApiKey, 201)
    )
    async def issue(request: Request, response: Response, body: IssueKeyRequest) -> dict[str, Any]:
        response.headers["Cache-Control"] = "no-store"
        return await actions.issue(body, key_of(request))

    @router.post("/keys/{key_id}/rotate", dependencies=of_api_key, **answers(said.NewApiKey, 201))
    async def rotate(
        request: Request, response: Response, key_id: str, body: RotateKeyRequest
    ) -> dict[str, Any]:
        response.headers["Cache-Control"] = "no-store"
        return await actions.rotate(key_id, body, key_of(request))

    @router.post("/keys/{key_id}/revoke", dependencies=of_api_key, **answers(said.RevokedKey))
    async def revoke(request: Request, key_id: str, body: ActionRequest) -> dict[str, Any]:
        return await actions.revoke(key_id, body, key_of(request))

    @router.post(
        "/erasures", dependencies=[Depends(access.listed)], **answers(said.RequestedErasure, 202)
    )
    async def erase(request: Request, body: EraseRequest) -> dict[str, Any]:
        return await actions.erase(body, key_of(request))

    @router.post(
        "/dead-letters/replay",
        dependencies=[Depends(access.letters_of_body)],
        **answers(said.ReplayedLetters),
    )
    async def replay(request: Request, body: ReplayRequest) -> dict[str, Any]:
        return await actions.replay(body, key_of(request))

    return router
