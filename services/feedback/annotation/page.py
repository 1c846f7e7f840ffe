"""The annotation page over HTTP: the page itself and what its script calls."""

from __future__ import annotations

from typing import Annotated, Any

import structlog
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.feedback.annotation.consistency import LabelConsistency
from services.feedback.annotation.queue import AnnotationQueue, ShownItem
from services.feedback.voting.invites import Rater
from services.feedback.voting.markdown import render
from services.feedback.voting.pages import (
    body_of,
    call_route,
    html_page,
    message_page,
    shown_answer,
    shown_turn,
)
from services.feedback.voting.sessions import RaterSessions
from shared.contracts.events.base import MAX_ID, MAX_TEXT
from shared.errors import RatchetError
from shared.http.problems import json_response

log = structlog.get_logger(__name__)

Corrected = Annotated[str, Field(max_length=MAX_TEXT)]


class _Labelled(BaseModel):
    model_config = ConfigDict(extra="forbid")
    label: Annotated[str, Field(max_length=MAX_ID)]
    corrections: Annotated[tuple[Corrected | None, ...], Field(max_length=2)] = ()


class AnnotationPage:
    """The endpoints, each one method."""

    def __init__(
        self,
        queue: AnnotationQueue,
        consistency: LabelConsistency,
        sessions: RaterSessions,
        *,
        guidelines: str,
    ) -> None:
        self._queue = queue
        self._consistency = consistency
        self._sessions = sessions
        self._guidelines = guidelines

    def routes(self) -> list[Route]:
        """The page's routes, beside the voting page's."""
        item = "/api/annotations/{item_id}"
        return [
            Route("/annotations", self.page),
            call_route("GET", "/api/annotations", self.progress),
            call_route("POST", "/api/annotations/next", self.next),
            call_route("POST", f"{item}/label", self.label),
            call_route("POST", f"{item}/skip", self.skip),
        ]

    async def page(self, request: Request) -> Response:
        """The page; without a session, how to get one."""
        try:
            rater = self._sessions.visitor(request)
        except RatchetError as error:
            return message_page(error, "Sign in to label")
        return html_page("annotations.html", request, user=rater.user_id)

    async def next(self, request: Request) -> Response:
        """The next item, leased to the rater."""
        return json_response(200, await self._next(self._sessions.caller(request)))

    async def label(self, request: Request) -> Response:
        """Store a label."""
        rater, labelled = self._sessions.caller(request), await body_of(request, _Labelled)
        item_id = request.path_params["item_id"]
        await self._queue.label(rater, item_id, labelled.label, labelled.corrections)
        log.info("annotation.accepted", item_id=item_id)
        return json_response(200, {"progress": self._progress(rater)})

    async def skip(self, request: Request) -> Response:
        """Leave an item to others."""
        rater = self._sessions.caller(request)
        await self._queue.skip(rater, request.path_params["item_id"])
        return json_response(200, {"progress": self._progress(rater)})

    async def progress(self, request: Request) -> Response:
        """How far the queue is, and how far raters agree."""
        return json_response(200, self._progress(self._sessions.rater(request)))

    async def _next(self, rater: Rater) -> dict[str, Any]:
        shown = await self._queue.next(rater)
        return {**self._shown(shown), "progress": self._progress(rater)}

    def _shown(self, shown: ShownItem) -> dict[str, Any]:
        added = shown.item.added
        guidelines = "\n\n".join(filter(None, (added.guidelines, self._guidelines)))
        return {
            "item_id": added.item_id,
            "kind": added.kind.value,
            "category": added.context.category,
            "high_stakes": shown.item.high_stakes,
            "role": shown.role.value,
            "given": dict(shown.given),
            "turns": [shown_turn(turn) for turn in added.messages],
            "answers": [shown_answer(answer) for answer in shown.answers],
            "guidelines": render(guidelines) if guidelines else "",
        }

    def _progress(self, rater: Rater) -> dict[str, Any]:
        progress = self._queue.progress(rater.tenant, rater.user_id)
        agreed = self._consistency.of(rater.tenant)
        return {
            "mine": progress.mine,
            "labelled": progress.labelled,
            "needed": progress.needed,
            "disputed": progress.disputed,
            "seconds_left": progress.seconds_left,
            "agreement": {
                "items": agreed.items,
                "alpha": agreed.alpha,
                "low": agreed.low,
                "high": agreed.high,
                "raw": agreed.raw,
            },
        }
