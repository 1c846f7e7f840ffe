"""Queries over HTTP: what became of a feedback, examples with cursor paging, exports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, Field

from services.feedback.errors import AmbiguousFeedback, NotFound
from services.feedback.read_model.export import accepted_format, export, next_page
from services.feedback.read_model.export_formats import MEDIA_TYPES, ExportFormat, export_writer
from services.feedback.read_model.listing import ExampleFilter, decode_cursor, encode_cursor
from services.feedback.read_model.queries import ReadModelQueries
from services.feedback.read_model.status import FeedbackStatus, status_of
from shared.clock import Clock
from shared.contracts.events.api_keys import Permission
from shared.contracts.events.base import OptionalIdentifier
from shared.contracts.events.preferences import PreferencePair, UnpairedExample
from shared.contracts.events.quality import ExampleJoined
from shared.http.openapi import problem_responses
from shared.http.problems import json_response
from shared.http.streaming import StreamedResponse
from shared.keys import KeyRing, OutOfScope
from shared.quotas import Quotas
from shared.registry.versions import Registry
from shared.tenants import ModelTenants

MAX_LIMIT = 500
PAGE_BYTES = 8_000_000
"""A page ends before it is larger, so it may have fewer examples than `limit`."""
MAX_CURSOR = 1_000
FRESH_S = 5.0


class ExampleQuery(ExampleFilter):
    """Query parameters of a listing."""

    limit: int = Field(default=50, ge=1, le=MAX_LIMIT, description="examples of a page, at most")
    cursor: str = Field(default="", max_length=MAX_CURSOR, description="`next` of the page before")


class ExportQuery(ExampleFilter):
    """Query parameters of an export."""

    format: ExportFormat | None = Field(default=None, description="absent: by the Accept header")


class ExamplePage(BaseModel):
    """A page of examples: joined rows, or pairs, or unpaired examples, as `kind` says."""

    examples: list[ExampleJoined | PreferencePair | UnpairedExample]
    next: str | None = Field(description="cursor of the next page; null at the end")
    age_s: float | None = Field(description="seconds since the log was read to its end")


class ReindexStarted(BaseModel):
    """The replica that answered folds the log anew."""

    started_at: AwareDatetime


class QueryApi:
    """The endpoints, each one method."""

    def __init__(
        self,
        *,
        queries: ReadModelQueries,
        age_s: Callable[[], float],
        reindex: Callable[[], None],
        keys: KeyRing,
        registry: Registry,
        clock: Clock,
        quotas: Quotas,
        tenants: ModelTenants,
    ) -> None:
        self._queries = queries
        self._age_s = age_s
        self._reindex = reindex
        self._keys = keys
        self._registry = registry
        self._clock = clock
        self._quotas = quotas
        self._tenants = tenants

    async def feedback(self, request: Request, feedback_id: str, trace_id: str) -> FeedbackStatus:
        """See the route.

        Raises:
            NotFound: the tenant has no such feedback, or the read model does not have it yet.
            AmbiguousFeedback: several traces have feedback of this id.

        """
        tenant = self._tenant(request, Permission.feedback)
        found = await self._queries.feedback(tenant, feedback_id, trace_id)
        traces = dict.fromkeys(one.trace_id for one in found.revisions)
        if not traces:
            raise NotFound(f"feedback {feedback_id}: unknown; {self._advice()}")
        if len(traces) > 1:
            raise AmbiguousFeedback(
                f"feedback {feedback_id}: {len(traces)} traces have feedback of this id; "
                "send its trace_id too"
            )
        return status_of(feedback_id, next(iter(traces)), found, self._registry, self._clock.now())

    async def examples(self, request: Request, query: ExampleQuery) -> Response:
        """See the route."""
        tenant = self._tenant(request, Permission.operate)
        wanted = _filter(query)
        after = decode_cursor(query.cursor, wanted) if query.cursor else None
        page = await self._queries.page(
            tenant, wanted, after, limit=query.limit, max_bytes=PAGE_BYTES
        )
        age_s = self._age_s()
        return json_response(
            200,
            {
                "examples": [orjson.Fragment(one.body) for one in page.examples],
                "next": encode_cursor(page.examples[-1].place, wanted) if page.more else None,
                "age_s": round(age_s, 3) if age_s < float("inf") else None,
            },
        )

    async def export(self, request: Request, query: ExportQuery) -> Response:
        """See the route."""
        tenant = self._tenant(request, Permission.operate)
        wanted = _filter(query)
        format_ = query.format or accepted_format(request.headers.get("accept", ""))
        writer = export_writer(format_)
        # The first page is read before the answer begins, so that a failure is an error and no
        # export that looks empty.
        first = await next_page(self._queries, tenant, wanted, None)
        stream = export(self._queries, tenant, wanted, writer, first)
        name = f"{wanted.kind.value}.{format_.value}"
        return StreamedResponse(
            stream,
            media_type=MEDIA_TYPES[format_],
            headers={"content-disposition": f'attachment; filename="{name}"'},
        )

    async def reindex(self, request: Request) -> ReindexStarted:
        """See the route.

        Raises:
            OutOfScope: the key is a tenant's; all tenants' queries wait for the fold.

        """
        tenant = self._tenant(request, Permission.operate)
        if not self._tenants.scope_of(tenant).everything:
            raise OutOfScope("read model", "the read model", tenant)
        self._reindex()
        return ReindexStarted(started_at=self._clock.now())

    def _tenant(self, request: Request, scope: Permission) -> str:
        key = self._keys.authenticate(request.headers.get("authorization"), scope)
        self._quotas.spend(key.tenant, key=key)
        return key.tenant

    def _advice(self) -> str:
        """What to do about a feedback that is not found: the read model may be behind the log."""
        age_s = self._age_s()
        if age_s <= FRESH_S:
            return "look at the id, and at ratchet dead-letters list"
        if age_s == float("inf"):
            return "ask again, the read model is being built"
        return f"ask again, the read model is {age_s:.0f} s behind the log"


def query_router(api: QueryApi) -> APIRouter:
    """The routes of the read model."""
    router = APIRouter()

    @router.get("/v1/examples/export", responses={200: _EXPORTED, **problem_responses(
        401, 403, 406, 422, 429, 503
    )}, response_class=Response)  # fmt: skip
    async def export_examples(request: Request, query: Annotated[ExportQuery, Query()]) -> Response:
        """All examples that match, as a stream of JSON Lines, CSV or Parquet."""
        return await api.export(request, query)

    @router.get("/v1/examples", response_model=ExamplePage, responses=problem_responses(
        401, 403, 422, 429, 503
    ))  # fmt: skip
    async def list_examples(request: Request, query: Annotated[ExampleQuery, Query()]) -> Response:
        """A page of examples of the key's tenant."""
        return await api.examples(request, query)

    @router.get("/v1/feedback/{feedback_id:path}", responses=problem_responses(
        401, 403, 404, 409, 422, 429, 503
    ))  # fmt: skip
    async def feedback_status(
        request: Request,
        feedback_id: str,
        trace_id: Annotated[OptionalIdentifier, Query(description="where ids repeat")] = "",
    ) -> FeedbackStatus:
        """A feedback of the key's tenant, and what became of it."""
        return await api.feedback(request, feedback_id, trace_id)

    @router.post("/v1/read-model/reindex", status_code=202, responses=problem_responses(
        401, 403, 429
    ))  # fmt: skip
    async def reindex(request: Request) -> ReindexStarted:
        """Delete this replica's read model and fold the log anew; queries wait until it is back."""
        return await api.reindex(request)

    return router


def _filter(query: ExampleFilter) -> ExampleFilter:
    """The filter alone, without the paging and the format around it."""
    return ExampleFilter(**{name: getattr(query, name) for name in ExampleFilter.model_fields})


_EXPORTED: dict[str, Any] = {
    "description": "One event a line, or a table",
    "content": {
        "application/x-ndjson": {"schema": {"type": "string"}},
        "text/csv": {"schema": {"type": "string"}},
        "application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}},
    },
}
