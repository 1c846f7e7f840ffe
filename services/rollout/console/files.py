"""Files of the console: static pages that ask the JSON API. They need no key; what they ask does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response

from shared.http.look import LOOK

HTML = ("page.html", "text/html; charset=utf-8")
SCRIPT = "text/javascript; charset=utf-8"
STYLE = "text/css; charset=utf-8"
PAGES = (
    "versions",
    "training",
    "datasets",
    "keys",
    "dead-letters",
    "erasures",
    "quality",
    "report",
)
"""Names of the pages beside rollouts; `pages.js` draws each."""
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    **{f"/{page}": HTML for page in PAGES},
    "/look.css": (str(LOOK), STYLE),
    "/console.css": ("console.css", STYLE),
    "/common.js": ("common.js", SCRIPT),
    "/console.js": ("console.js", SCRIPT),
    "/dataset.js": ("dataset.js", SCRIPT),
    "/pages.js": ("pages.js", SCRIPT),
    "/report.js": ("report.js", SCRIPT),
}
DIRECTORY = Path(__file__).parent / "static"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""No script, style or connection but the service's own; no page may put this one in a frame."""


def console_routes() -> APIRouter:
    """Routes of the console's files, read once."""
    router = APIRouter()
    for path, (name, media_type) in FILES.items():
        answer = _file((DIRECTORY / name).read_bytes(), media_type)
        router.add_api_route(path, answer, methods=["GET"], include_in_schema=False)
    return router


def _file(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)

    return answer
