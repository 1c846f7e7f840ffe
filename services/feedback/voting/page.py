"""The voting page over HTTP: sign-in, the page itself and what its script calls."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from services.feedback.voting.ballots import RaterBallots, Shown
from services.feedback.voting.invites import Rater
from services.feedback.voting.markdown import render
from services.feedback.voting.pages import (
    PATH,
    body_of,
    call_route,
    embedded_by,
    html_page,
    message_page,
    shown_answer,
    shown_turn,
)
from services.feedback.voting.plan import MAX_QUESTION
from services.feedback.voting.rater_store import CountedVote
from services.feedback.voting.sessions import RaterSessions
from services.feedback.voting.spans import MAX_SPANS, MarkedSpan
from shared.contracts.events.base import MAX_ID, MAX_TEXT
from shared.contracts.events.votes import Choice
from shared.errors import RatchetError
from shared.http.problems import json_response

log = structlog.get_logger(__name__)

HISTORY = 20
"""Votes listed on the page."""


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")
    question: Annotated[str, Field(max_length=MAX_QUESTION)] = ""
    category: Annotated[str, Field(max_length=MAX_ID)] = ""


class _Voted(BaseModel):
    model_config = ConfigDict(extra="forbid")
    choice: Choice


class _Corrected(BaseModel):
    model_config = ConfigDict(extra="forbid")
    side: Literal["left", "right"]
    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]


class _Marked(BaseModel):
    model_config = ConfigDict(extra="forbid")
    side: Literal["left", "right"]
    spans: Annotated[tuple[MarkedSpan, ...], Field(min_length=1, max_length=MAX_SPANS)]


class VotingPage:
    """The endpoints, each one method."""

    def __init__(self, ballots: RaterBallots, sessions: RaterSessions) -> None:
        self._ballots = ballots
        self._sessions = sessions

    def routes(self) -> list[Route]:
        """The page's routes, below PATH."""
        comparison = "/api/comparisons/{comparison_id}"
        return [
            Route("/", self.page),
            Route("/sign-in", self.enter),
            Route("/embed", self.embed),
            call_route("GET", "/api/progress", self.progress),
            call_route("POST", "/api/next", self.next),
            call_route("POST", "/api/sign-out", self.leave),
            call_route("POST", f"{comparison}/vote", self.vote),
            call_route("POST", f"{comparison}/undo", self.undo),
            call_route("POST", f"{comparison}/correction", self.correct),
            call_route("POST", f"{comparison}/spans", self.mark),
        ]

    async def enter(self, request: Request) -> Response:
        """Sign in by an invite link, then show the page without the token in its address."""
        try:
            self._sessions.enter(request)
        except RatchetError as error:
            return message_page(error, "You cannot sign in")
        return RedirectResponse(f"{PATH}/", 303)

    async def page(self, request: Request) -> Response:
        """The page; without a session, how to get one."""
        try:
            rater = self._sessions.visitor(request)
        except RatchetError as error:
            return message_page(error, "Sign in to vote")
        return html_page("page.html", request, user=rater.user_id, **self._planned())

    async def embed(self, request: Request) -> Response:
        """The page in a frame of a product's page, for the rater of an invite."""
        query = request.query_params
        origin, invite = query.get("origin", ""), query.get("invite", "")
        try:
            self._sessions.check_embedding(origin)
        except RatchetError as error:
            return message_page(error, "This page cannot be shown here")
        try:
            rater = self._sessions.invited(invite)
        except RatchetError as error:
            return embedded_by(message_page(error, "You cannot vote now"), origin)
        page = html_page(
            "page.html",
            request,
            user=rater.user_id,
            parent=origin,
            invite=invite,
            asked=query.get("question", "")[:MAX_QUESTION],
            **self._planned(),
        )
        return embedded_by(page, origin)

    def _planned(self) -> dict[str, Any]:
        plan = self._ballots.plan
        return {
            "categories": plan.category_names,
            "has_queue": bool(plan.prompts),
            "guidelines": render(plan.guidelines) if plan.guidelines else "",
            "max_question": MAX_QUESTION,
        }

    async def next(self, request: Request) -> Response:
        """The next comparison, on the rater's own question where one is given."""
        rater, asked = self._sessions.caller(request), await body_of(request, _Asked)
        if asked.question.strip():
            shown = await self._ballots.ask(rater, asked.question.strip(), asked.category)
        else:
            shown = await self._ballots.next(rater)
        return json_response(200, _shown(shown))

    async def vote(self, request: Request) -> Response:
        """Count a vote, and name the versions."""
        rater, voted = self._sessions.caller(request), await body_of(request, _Voted)
        vote = await self._ballots.vote(rater, request.path_params["comparison_id"], voted.choice)
        log.info("vote.accepted", comparison_id=vote.comparison_id, way="page")
        return json_response(
            200,
            {
                "versions": {"left": vote.left, "right": vote.right},
                "faster_than_reading": vote.faster_than_reading,
                "progress": await self._progress(rater),
            },
        )

    async def undo(self, request: Request) -> Response:
        """Withdraw a vote within its minute."""
        rater = self._sessions.caller(request)
        await self._ballots.undo(rater, request.path_params["comparison_id"])
        return json_response(200, {"progress": await self._progress(rater)})

    async def correct(self, request: Request) -> Response:
        """Store a correction of one answer."""
        rater, corrected = self._sessions.caller(request), await body_of(request, _Corrected)
        comparison_id = request.path_params["comparison_id"]
        await self._ballots.correct(rater, comparison_id, corrected.side, corrected.text)
        return json_response(200, {"accepted": True})

    async def mark(self, request: Request) -> Response:
        """Store liked and disliked parts of one answer."""
        rater, marked = self._sessions.caller(request), await body_of(request, _Marked)
        comparison_id = request.path_params["comparison_id"]
        await self._ballots.mark(rater, comparison_id, marked.side, marked.spans)
        return json_response(200, {"accepted": True})

    async def progress(self, request: Request) -> Response:
        """Counts, coverage and history of today."""
        return json_response(200, await self._progress(self._sessions.rater(request)))

    async def leave(self, request: Request) -> Response:
        """End the session."""
        self._sessions.caller(request)
        request.session.clear()
        return json_response(200, {"signed_out": True})

    async def _progress(self, rater: Rater) -> dict[str, Any]:
        progress = await self._ballots.progress(rater)
        return {
            "today": progress.today,
            "goal": progress.goal,
            "coverage": progress.coverage,
            "history": [self._past(vote) for vote in progress.votes[:HISTORY]],
        }

    def _past(self, vote: CountedVote) -> dict[str, Any]:
        return {
            **vote.model_dump(mode="json", exclude={"at"}),
            "at": vote.at.isoformat(),
            "undo_s": self._ballots.undo_left_s(vote),
        }


def _shown(shown: Shown) -> dict[str, Any]:
    return {
        "comparison_id": shown.comparison_id,
        "category": shown.category,
        "earlier": [shown_turn(turn) for turn in shown.turns[:-1]],
        "question": shown.turns[-1].content,
        "left": shown_answer(shown.left),
        "right": shown_answer(shown.right),
        "one_version": shown.one_version,
    }
