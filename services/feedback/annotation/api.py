"""The annotation queue over HTTP, for operators: add items, list them, see how far they are."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.routing import APIRoute

from services.feedback.annotation.additions import NewItem, NewItems
from services.feedback.annotation.board import AnnotationItem, ItemState
from services.feedback.annotation.consistency import LabelConsistency
from services.feedback.annotation.documents import (
    AddedItems,
    AnnotationList,
    AnnotationQuery,
    AnnotationStatus,
    CategoryCoverage,
    CategoryStates,
    CoverageReport,
    ItemToLabel,
    LabelAgreement,
    LabelOfItem,
    ListedItem,
    NewLabel,
    SampleRequest,
    TurnToLabel,
)
from services.feedback.annotation.queue import AnnotationQueue
from services.feedback.annotation.sampling import TrafficPrompt, sample
from services.feedback.annotation.traffic import RecentTraffic
from services.feedback.errors import Malformed, NotFound
from services.feedback.voting.invites import Rater
from shared.contracts.events.api_keys import Permission
from shared.contracts.events.base import prompt_text
from shared.http.asgi import Message, Receive
from shared.http.body import ClientDisconnected, read_body
from shared.http.openapi import problem_responses
from shared.keys import KeyRing

MAX_BODY_BYTES = 6_000_000
"""Twenty items of the greatest length, at four bytes a character."""
BODY_TIMEOUT_S = 10.0
MAX_SHOWN = 500
"""Characters of a question in a listing."""


class AnnotationApi:
    """The endpoints, each one method."""

    def __init__(
        self,
        queue: AnnotationQueue,
        consistency: LabelConsistency,
        keys: KeyRing,
        traffic: RecentTraffic,
        disliked: Callable[[str], Awaitable[Collection[str]]],
        *,
        authorization: str = "",
        rng: random.Random | None = None,
    ) -> None:
        """Endpoints of a queue.

        `disliked` gives a tenant's traces whose answers people disliked; `authorization` asks the
        router for answers, the caller's own where it is empty.
        """
        self._traffic = traffic
        self._disliked = disliked
        self._rng = rng or random.SystemRandom()
        self._queue = queue
        self._consistency = consistency
        self._keys = keys
        self._authorization = authorization

    async def add(self, request: Request, body: NewItems) -> AddedItems:
        """See the route."""
        tenant = self._tenant(request)
        authorization = self._authorization or request.headers.get("authorization", "")
        added = await self._queue.add(body.items, tenant=tenant, authorization=authorization)
        return AddedItems(added=[event.item_id for event in added])

    def items(self, request: Request, query: AnnotationQuery) -> AnnotationList:
        """See the route."""
        found = islice(_matching(self._queue, self._tenant(request), query), query.limit)
        return AnnotationList(items=[_listed(item) for item in found])

    def status(self, request: Request) -> AnnotationStatus:
        """See the route."""
        tenant = self._tenant(request)
        progress = self._queue.progress(tenant)
        agreed = self._consistency.of(tenant)
        high_stakes = self._queue.board.rules.high_stakes
        return AnnotationStatus(
            labelled=progress.labelled,
            needed=progress.needed,
            disputed=progress.disputed,
            seconds_left=progress.seconds_left,
            categories=[
                CategoryStates(
                    category=category,
                    high_stakes=category in high_stakes,
                    **{state.value: counts[state.value] for state in ItemState},
                )
                for category, counts in sorted(self._queue.board.coverage(tenant).items())
            ],
            agreement=LabelAgreement(
                items=agreed.items,
                raters=agreed.raters,
                alpha=agreed.alpha,
                low=agreed.low,
                high=agreed.high,
                raw=agreed.raw,
                kappa=agreed.kappa,
                kappa_of=agreed.kappa_of,
            ),
        )

    async def sample(self, request: Request, body: SampleRequest) -> AddedItems:
        """See the route."""
        tenant = self._tenant(request)
        fresh = [
            (item_id, prompt)
            for prompt in await self._traffic.prompts(tenant, await self._disliked(tenant))
            if not self._queue.board.get(tenant, item_id := _traffic_id(prompt))
            and not self._queue.board.is_erased(tenant, prompt.asker)
        ]
        ids = {prompt: item_id for item_id, prompt in fresh}
        chosen = sample(list(ids), body.count, self._rng)
        items = [
            NewItem(
                item_id=ids[prompt],
                kind=body.kind,
                messages=prompt.messages,
                category=prompt.category,
                raters=body.raters,
                source="traffic",
            )
            for prompt in chosen
        ]
        authorization = self._authorization or request.headers.get("authorization", "")
        added = await self._queue.add(
            items,
            tenant=tenant,
            authorization=authorization,
            askers={ids[prompt]: prompt.asker for prompt in chosen},
        )
        return AddedItems(added=[event.item_id for event in added])

    async def coverage(self, request: Request) -> CoverageReport:
        """See the route."""
        tenant = self._tenant(request)
        prompts = await self._traffic.prompts(tenant, await self._disliked(tenant))
        asked = Counter(prompt.category for prompt in prompts)
        failing = Counter(prompt.category for prompt in prompts if prompt.failing)
        items = Counter(item.added.context.category for item in self._queue.board.items(tenant))
        return CoverageReport(
            categories=[
                CategoryCoverage(
                    category=category,
                    prompts=asked[category],
                    share=asked[category] / max(asked.total(), 1),
                    failing=failing[category],
                    items=items[category],
                    share_of_items=items[category] / max(items.total(), 1),
                )
                for category, _ in (asked + items).most_common()
            ]
        )

    def item(self, request: Request, item_id: str) -> ItemToLabel:
        """See the route."""
        item = self._queue.board.get(self._tenant(request), item_id)
        if item is None:
            raise NotFound(f"no item {item_id}; ratchet annotations list shows them")
        added = item.added
        return ItemToLabel(
            item_id=added.item_id,
            kind=added.kind,
            state=item.state,
            category=added.context.category,
            guidelines=added.guidelines,
            messages=[TurnToLabel(role=turn.role, content=turn.content) for turn in added.messages],
            answers=[answer.completion for answer in added.answers],
            missing=item.missing,
        )

    async def label(self, request: Request, item_id: str, body: NewLabel) -> LabelOfItem:
        """See the route."""
        tenant = self._tenant(request)
        if body.by == "model":
            given = await self._queue.label_by_model(
                tenant, item_id, model=body.annotator, label=body.label
            )
        else:
            rater = Rater(tenant, body.annotator)
            given = await self._queue.label(rater, item_id, body.label, turned=body.turned)
        return LabelOfItem.model_validate(given, from_attributes=True)

    def authorize(self, request: Request) -> None:
        """Check the key of a request.

        Raises:
            Unauthenticated, Forbidden: it has none that may operate.

        """
        self._tenant(request)

    def _tenant(self, request: Request) -> str:
        header = request.headers.get("authorization")
        return self._keys.authenticate(header, Permission.operate).tenant


def annotation_router(api: AnnotationApi) -> APIRouter:
    """The routes of the annotation queue. Scope: operate."""

    class GuardedRoute(APIRoute):
        """A route that checks the key before FastAPI reads the body, which is bounded."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def guarded(request: Request) -> Response:
                api.authorize(request)
                return await handle(Request(request.scope, await _read(request)))

            return guarded

    router = APIRouter(route_class=GuardedRoute)

    @router.post("/v1/annotations", status_code=201, responses=problem_responses(
        400, 401, 403, 404, 408, 413, 422, 502, 503
    ))  # fmt: skip
    async def add_items(request: Request, body: NewItems) -> AddedItems:
        """Add items that several raters label; answers that are not given are generated."""
        return await api.add(request, body)

    @router.get("/v1/annotations", responses=problem_responses(401, 403, 422))
    async def list_items(
        request: Request, query: Annotated[AnnotationQuery, Query()]
    ) -> AnnotationList:
        """Items of the key's tenant, newest first: all that wait, and the last that are settled."""
        return api.items(request, query)

    @router.get("/v1/annotations/status", responses=problem_responses(401, 403))
    async def queue_status(request: Request) -> AnnotationStatus:
        """Progress, time left, and agreement of raters."""
        return api.status(request)

    @router.post("/v1/annotations/sample", status_code=201, responses=problem_responses(
        400, 401, 403, 404, 408, 413, 422, 502, 503
    ))  # fmt: skip
    async def sample_traffic(request: Request, body: SampleRequest) -> AddedItems:
        """Add prompts of recent traffic; rare categories, failures and edge cases weigh more."""
        return await api.sample(request, body)

    @router.get("/v1/annotations/coverage", responses=problem_responses(401, 403, 503))
    async def coverage(request: Request) -> CoverageReport:
        """Categories of recent traffic beside those of the queue."""
        return await api.coverage(request)

    @router.get("/v1/annotations/{item_id}", responses=problem_responses(401, 403, 404))
    async def show_item(request: Request, item_id: str) -> ItemToLabel:
        """An item whole, for another tool to show; versions are not named."""
        return api.item(request, item_id)

    @router.post("/v1/annotations/{item_id}/labels", status_code=201, responses=problem_responses(
        400, 401, 403, 404, 408, 409, 413, 422, 503
    ))  # fmt: skip
    async def label_item(request: Request, item_id: str, body: NewLabel) -> LabelOfItem:
        """A program's label, or one that a person gave in another tool.

        A program's is no feedback, and fills no slot in a high-stakes category.
        """
        return await api.label(request, item_id, body)

    return router


async def _read(request: Request) -> Receive:
    """What hands out the body of a request, read whole.

    Raises:
        BodyTooLarge, BodyTooSlow: it is over a limit.
        Malformed: the connection ended before it did.

    """
    try:
        body = await read_body(
            request.scope, request.receive, limit=MAX_BODY_BYTES, timeout_s=BODY_TIMEOUT_S
        )
    except ClientDisconnected:
        raise Malformed("the connection ended before the body did; send it again") from None

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _traffic_id(prompt: TrafficPrompt) -> str:
    """The same conversation is the same item, so that it is sampled once."""
    digest = hashlib.sha256(prompt_text(prompt.messages).encode()).hexdigest()
    return f"traffic-{digest[:32]}"


def _matching(
    queue: AnnotationQueue, tenant: str, query: AnnotationQuery
) -> Iterator[AnnotationItem]:
    for item in reversed(list(queue.board.items(tenant))):
        of_state = query.state in (None, item.state)
        if of_state and query.category in ("", item.added.context.category):
            yield item


def _listed(item: AnnotationItem) -> ListedItem:
    return ListedItem(
        item_id=item.added.item_id,
        kind=item.added.kind,
        state=item.state,
        category=item.added.context.category,
        high_stakes=item.high_stakes,
        question=prompt_text(item.added.messages)[-MAX_SHOWN:],
        versions=[answer.version for answer in item.added.answers],
        raters=item.added.raters,
        missing=item.missing,
        labels=[
            LabelOfItem.model_validate(label, from_attributes=True)
            for label in item.labels.values()
        ],
        outcome=item.outcome,
        added_at=item.added.added_at,
    )
