"""Errors as HTTP: one problem shape (RFC 9457) for every service but the router.

The router answers in the shape of the OpenAI API, as its clients read no other.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import orjson
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from shared.errors import RatchetError
from shared.validation import fields_found, in_one_line

log = structlog.get_logger(__name__)

PROBLEM_TYPE = "application/problem+json"
UNAUTHENTICATED = 401


class InvalidField(RatchetError):
    """A field of the request breaks a rule."""

    status = 422
    code = "invalid"
    title = "Invalid request"


class _Whole(Response):
    """A response whose body is bytes and whose head has nothing else: starlette's takes 3 µs more."""

    def __init__(self, status: int, body: bytes, content_type: str) -> None:
        self.status_code = status
        self.media_type = content_type
        self.background = None
        self.body = body
        self.raw_headers = [
            (b"content-type", content_type.encode()),
            (b"content-length", b"%d" % len(body)),
        ]


def json_response(
    status: int, body: Any, *, content_type: str = "application/json", headers: Any = None
) -> Response:
    """A JSON response."""
    content = orjson.dumps(body)
    if not headers:
        return _Whole(status, content, content_type)
    return Response(content, status, headers=headers, media_type=content_type)


def problem(error: RatchetError, *, close: bool = False) -> Response:
    """The problem response of an error; `close` ends the connection after it."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.status == UNAUTHENTICATED:
        headers["www-authenticate"] = "Bearer"
    if close:
        headers["connection"] = "close"
    return json_response(error.status, error.problem(), content_type=PROBLEM_TYPE, headers=headers)


def handle_errors(app: FastAPI) -> None:
    """Make every error of an application a problem: its own, a bad request, an unknown path."""

    @app.exception_handler(RatchetError)
    async def refused(_: Request, error: RatchetError) -> Response:
        return problem(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        fields = fields_found(error.errors(), whole="body", unsaid=("body", "query"))
        return problem(InvalidField(in_one_line(fields), fields))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        detail = f"{request.method} {request.url.path}: {error.detail}; /docs lists what there is"
        body = {
            "type": "about:blank",
            "title": error.detail,
            "status": error.status_code,
            "code": HTTPStatus(error.status_code).name.lower(),
            "detail": detail,
        }
        return json_response(
            error.status_code, body, content_type=PROBLEM_TYPE, headers=error.headers
        )

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        log.error("http.failed", path=request.url.path, error=repr(error))
        return problem(RatchetError("the service failed; its log says how. Try again"))
