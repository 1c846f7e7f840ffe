"""The voting page over HTTP: sign-in, the page itself and what its script calls.

Security: a signed session cookie (HttpOnly, SameSite=Lax, Secure outside the local profile), a
CSRF token in a header of every call that changes something, and a content security policy that
allows the page's own script and style and nothing else.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import structlog
from jinja2 import Environment, FileSystemLoader, select_autoescape
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from services.feedback.errors import FeedbackError, Malformed, Reason, field_errors, invalid
from services.feedback.submissions import parse_json
from services.feedback.voting.ballots import RaterBallots, Shown
from services.feedback.voting.invites import InviteRefused, Invites, Rater
from services.feedback.voting.markdown import render
from services.feedback.voting.plan import MAX_QUESTION
from services.feedback.voting.rater_store import CountedVote
from services.feedback.voting.wording import in_plain_words
from shared.clock import Clock
from shared.contracts.events.api_keys import Permission
from shared.contracts.events.base import MAX_ID, MAX_TEXT
from shared.contracts.events.votes import Choice, Side
from shared.errors import RatchetError
from shared.http.asgi import AsgiApp, Message, Receive, Scope, Send
from shared.http.body import ClientDisconnected, read_body
from shared.http.problems import PROBLEM_TYPE, json_response
from shared.keys import KeyRing

log = structlog.get_logger(__name__)

PATH = "/vote"
COOKIE = "ratchet_vote"
HERE = Path(__file__).parent
MAX_BODY_BYTES = 4 * MAX_TEXT + 1_000
BODY_TIMEOUT_S = 10.0
HISTORY = 20
"""Votes listed on the page."""
OFF = (
    "The voting page is off: RATCHET_FEEDBACK_VOTING_SECRET_FILE is not set. Name a file with a "
    "secret of 32 characters or more, then start the feedback service again."
)
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class SignedOut(FeedbackError):
    """The session is over, or the request does not come from the page."""

    status = 401
    code = Reason.unauthenticated
    title = "Signed out"


@dataclass(frozen=True, slots=True)
class SignIn:
    """How raters sign in: by an invite, or by a header of a trusted proxy where it is named."""

    secret: str
    session_s: int
    secure: bool
    proxy_header: str = ""


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


class VotingPage:
    """The endpoints, each one method."""

    def __init__(
        self,
        ballots: RaterBallots,
        sign_in: SignIn,
        keys: KeyRing,
        clock: Clock,
        *,
        authorization: str = "",
    ) -> None:
        self._ballots = ballots
        self._sign_in = sign_in
        self._invites = Invites(sign_in.secret)
        self._keys = keys
        self._clock = clock
        self._authorization = authorization
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=select_autoescape(default=True),
            trim_blocks=True,
            lstrip_blocks=True,
        )

    async def enter(self, request: Request) -> Response:
        """Sign in by an invite link, then show the page without the token in its address."""
        try:
            rater = self._invites.read(
                request.query_params.get("invite", ""), now=self._clock.now()
            )
            self._check_tenant(rater)
        except RatchetError as error:
            return self._message(error.status, "You cannot sign in", in_plain_words(error))
        self._start_session(request, rater)
        return RedirectResponse(f"{PATH}/", 303)

    async def page(self, request: Request) -> Response:
        """The page; without a session, how to get one."""
        try:
            rater = self._proxied(request) or self._rater(request)
        except RatchetError as error:
            return self._message(error.status, "Sign in to vote", in_plain_words(error))
        plan = self._ballots.plan
        html = self._templates.get_template("page.html").render(
            path=PATH,
            user=rater.user_id,
            token=request.session["csrf"],
            categories=plan.category_names,
            has_queue=bool(plan.prompts),
            guidelines=render(plan.guidelines) if plan.guidelines else "",
            max_question=MAX_QUESTION,
        )
        return HTMLResponse(html)

    async def next(self, request: Request) -> Response:
        """The next comparison, on the rater's own question where one is given."""
        rater, asked = self._caller(request), await _body(request, _Asked)
        if asked.question.strip():
            shown = await self._ballots.ask(rater, asked.question.strip(), asked.category)
        else:
            shown = await self._ballots.next(rater)
        return json_response(200, _shown(shown))

    async def vote(self, request: Request) -> Response:
        """Count a vote, and name the versions."""
        rater, voted = self._caller(request), await _body(request, _Voted)
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
        rater = self._caller(request)
        await self._ballots.undo(rater, request.path_params["comparison_id"])
        return json_response(200, {"progress": await self._progress(rater)})

    async def correct(self, request: Request) -> Response:
        """Store a correction of one answer."""
        rater, corrected = self._caller(request), await _body(request, _Corrected)
        comparison_id = request.path_params["comparison_id"]
        await self._ballots.correct(rater, comparison_id, corrected.side, corrected.text)
        return json_response(200, {"accepted": True})

    async def progress(self, request: Request) -> Response:
        """Counts, coverage and history of today."""
        return json_response(200, await self._progress(self._rater(request)))

    async def leave(self, request: Request) -> Response:
        """End the session."""
        self._caller(request)
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

    def _caller(self, request: Request) -> Rater:
        """The rater of a call that changes something: the session's, with its CSRF token."""
        rater = self._rater(request)
        token = request.headers.get("x-csrf-token", "")
        if not hmac.compare_digest(token.encode(), request.session["csrf"].encode()):
            raise SignedOut("the page is older than your session; load it again")
        return rater

    def _rater(self, request: Request) -> Rater:
        session = request.session
        try:
            rater = Rater(session["tenant"], session["user_id"])
        except KeyError:
            raise SignedOut(
                "your session is over or has not begun; open your invite link again"
            ) from None
        if rater.tenant != self._tenant():
            raise SignedOut("the page serves another tenant now; ask for a new invite")
        if self._sign_in.proxy_header:
            proxied = request.headers.get(self._sign_in.proxy_header, "")
            if session.get("proxied") and proxied != rater.user_id:
                raise SignedOut("you are signed in as another person now; load the page again")
        return rater

    def _proxied(self, request: Request) -> Rater | None:
        """The rater whom a trusted proxy names, in a session of this page."""
        name = self._sign_in.proxy_header
        user_id = request.headers.get(name, "") if name else ""
        if not user_id:
            return None
        if len(user_id) > MAX_ID or not user_id.isprintable():
            raise SignedOut("the proxy named you in a way that cannot be used; tell your operator")
        rater = Rater(self._tenant(), user_id)
        if request.session.get("user_id") != user_id:
            self._start_session(request, rater, proxied=True)
        return rater

    def _start_session(self, request: Request, rater: Rater, *, proxied: bool = False) -> None:
        request.session.clear()
        request.session.update(
            tenant=rater.tenant,
            user_id=rater.user_id,
            csrf=secrets.token_urlsafe(24),
            proxied=proxied,
        )

    def _check_tenant(self, rater: Rater) -> None:
        if rater.tenant != self._tenant():
            raise InviteRefused(
                f"this invite is for tenant {rater.tenant}, and this page votes for another; "
                "ask for an invite to your tenant's page"
            )

    def _tenant(self) -> str:
        """The tenant of the key with which the page asks the router."""
        return self._keys.authenticate(self._authorization or None, Permission.vote).tenant

    def _message(self, status: int, title: str, said: dict[str, Any]) -> Response:
        html = self._templates.get_template("message.html").render(
            path=PATH, title=title, what=said["what"], remedy=said["remedy"]
        )
        return HTMLResponse(html, status)


def voting_app(page: VotingPage, sign_in: SignIn) -> AsgiApp:
    """The application below PATH."""
    comparison = "/api/comparisons/{comparison_id}"
    app = Starlette(
        routes=[
            Route("/", page.page),
            Route("/sign-in", page.enter),
            _api("GET", "/api/progress", page.progress),
            _api("POST", "/api/next", page.next),
            _api("POST", "/api/sign-out", page.leave),
            _api("POST", f"{comparison}/vote", page.vote),
            _api("POST", f"{comparison}/undo", page.undo),
            _api("POST", f"{comparison}/correction", page.correct),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        middleware=[
            Middleware(
                SessionMiddleware,
                secret_key=sign_in.secret,
                session_cookie=COOKIE,
                max_age=sign_in.session_s,
                path=PATH,
                same_site="lax",
                https_only=sign_in.secure,
            )
        ],
        exception_handlers={HTTPException: _unknown},
    )
    return _with_headers(app)


def voting_off() -> AsgiApp:
    """What stands at PATH while no secret is set: one clear sentence."""

    async def off(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(OFF + "\n", 503, media_type="text/plain")(scope, receive, send)

    return _with_headers(off)


_Model = TypeVar("_Model", bound=BaseModel)
Endpoint = Callable[[Request], Awaitable[Response]]


def _api(method: str, path: str, endpoint: Endpoint) -> Route:
    async def call(request: Request) -> Response:
        try:
            return await endpoint(request)
        except RatchetError as error:
            said = in_plain_words(error)
        except Exception:
            log.exception("voting.failed", path=path)
            said = in_plain_words(FeedbackError("the page's service failed; try again"))
        return json_response(said["status"], said, content_type=PROBLEM_TYPE)

    return Route(path, call, methods=[method])


async def _body(request: Request, model: type[_Model]) -> _Model:
    try:
        body = await read_body(
            request.scope, request.receive, limit=MAX_BODY_BYTES, timeout_s=BODY_TIMEOUT_S
        )
    except ClientDisconnected:
        raise Malformed("the connection ended before the body did; send it again") from None
    try:
        return model.model_validate(parse_json(body))
    except ValidationError as error:
        raise invalid(field_errors(error)) from None


def _shown(shown: Shown) -> dict[str, Any]:
    return {
        "comparison_id": shown.comparison_id,
        "category": shown.category,
        "question": shown.question,
        "left": _answer(shown.left),
        "right": _answer(shown.right),
        "one_version": shown.one_version,
    }


def _answer(side: Side) -> dict[str, Any]:
    return {"html": render(side.completion), "text": side.completion, "cut": side.cut}


async def _unknown(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return Response("There is no such page.\n", status, media_type="text/plain")


def _with_headers(app: AsgiApp) -> AsgiApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *given]
            await send(message)

        await app(scope, receive, sending)

    return answer
