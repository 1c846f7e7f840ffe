"""What raters' pages share: templates, headers, the routes of their calls, and the application.

The content security policy allows the pages' own scripts and style and nothing else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import structlog
from jinja2 import Environment, FileSystemLoader, select_autoescape
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from services.feedback.errors import FeedbackError, Malformed, field_errors, invalid
from services.feedback.submissions import parse_json
from services.feedback.voting.markdown import render
from services.feedback.voting.sessions import SignIn
from services.feedback.voting.wording import in_plain_words
from shared.contracts.events.base import MAX_TEXT
from shared.contracts.events.base import Message as Turn
from shared.contracts.events.votes import Side
from shared.errors import RatchetError
from shared.http.asgi import AsgiApp, Message, Receive, Scope, Send
from shared.http.body import ClientDisconnected, read_body
from shared.http.look import LOOK
from shared.http.problems import PROBLEM_TYPE, json_response

log = structlog.get_logger(__name__)

PATH = "/vote"
COOKIE = "ratchet_vote"
HERE = Path(__file__).parent
MAX_BODY_BYTES = 8 * MAX_TEXT + 1_000
"""Corrections of two answers, four bytes a character."""
BODY_TIMEOUT_S = 10.0
OFF = (
    "The voting page is off: RATCHET_FEEDBACK_VOTING_SECRET_FILE is not set; name a file with a "
    "secret of 32 characters or more, then start the feedback service again."
)
_CSP = "content-security-policy"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; form-action 'none'; base-uri 'none'"
)
_HEADERS = {
    _CSP: f"{_POLICY}; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_templates = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=select_autoescape(default=True),
    trim_blocks=True,
    lstrip_blocks=True,
)

_Body = TypeVar("_Body", bound=BaseModel)
Endpoint = Callable[[Request], Awaitable[Response]]


def html_page(template: str, request: Request, **values: Any) -> Response:
    """A page of a session; `values` are the template's."""
    values = {"path": PATH, "token": request.session.get("csrf", ""), **values}
    return HTMLResponse(_templates.get_template(template).render(**values))


def embedded_by(response: Response, origin: str) -> Response:
    """The response, which pages of an origin may show in a frame."""
    response.headers[_CSP] = f"{_POLICY}; frame-ancestors {origin}"
    return response


def message_page(error: RatchetError, title: str) -> Response:
    """A page that says what is wrong and what to do."""
    said = in_plain_words(error)
    html = _templates.get_template("message.html").render(
        path=PATH, title=title, what=said["what"], remedy=said["remedy"]
    )
    return HTMLResponse(html, error.status)


def call_route(method: str, path: str, endpoint: Endpoint) -> Route:
    """A route that a page's script calls: errors are problems in plain words."""

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


async def body_of(request: Request, model: type[_Body]) -> _Body:
    """The body of a page's call.

    Raises:
        Malformed: it is no JSON, or broke off.
        Invalid: a field breaks a rule.

    """
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


def shown_answer(side: Side) -> dict[str, Any]:
    """An answer for a page; nothing in it names its version."""
    return {"html": render(side.completion), "text": side.completion, "cut": side.cut}


def shown_turn(turn: Turn) -> dict[str, str]:
    """A turn of a conversation for a page."""
    return {"role": turn.role, "html": render(turn.content)}


async def look(_: Request) -> FileResponse:
    """The stylesheet that all pages of all services have."""
    return FileResponse(LOOK, media_type="text/css")


def pages_app(routes: Sequence[Route], sign_in: SignIn) -> AsgiApp:
    """The application below PATH."""
    app = Starlette(
        routes=[
            *routes,
            Route("/static/look.css", look),
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


def pages_off() -> AsgiApp:
    """What stands at PATH while no secret is set: one clear sentence."""

    async def off(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(OFF + "\n", 503, media_type="text/plain")(scope, receive, send)

    return _with_headers(off)


async def _unknown(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return Response("There is no such page.\n", status, media_type="text/plain")


def _with_headers(app: AsgiApp) -> AsgiApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = dict(message.get("headers", []))
                more = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [
                    *message.get("headers", []),
                    *(one for one in more if one[0] not in given),
                ]
            await send(message)

        await app(scope, receive, sending)

    return answer
