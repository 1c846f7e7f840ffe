"""Direct routes: the same answers as the ordinary routes, without FastAPI's routing."""

from __future__ import annotations

import httpx
import pytest
from fastapi import Request, Response

from services.feedback.direct_routes import DirectApp


def app() -> DirectApp:
    """An application whose endpoint answers with the body that it read, and says how it was met."""
    application = DirectApp(title="direct")

    async def echo(request: Request) -> Response:
        routed = "route" if "route" in request.scope or "path_params" in request.scope else "direct"
        return Response(await request.body(), 202, headers={"x-by": routed})

    application.add_api_route("/items", echo, methods=["POST"], summary="Echo.")
    application.serve_directly("/items", echo)
    return application


@pytest.mark.parametrize(
    ("method", "path", "status", "by"),
    [
        ("POST", "/items", 202, "direct"),
        ("POST", "/items?clamp=true", 202, "direct"),
        ("GET", "/items", 405, None),
        ("POST", "/items/", 307, None),
        ("POST", "/other", 404, None),
    ],
)
async def test_exactly_its_path_and_method_are_served_directly(
    method: str, path: str, status: int, by: str | None
) -> None:
    transport = httpx.ASGITransport(app())
    async with httpx.AsyncClient(transport=transport, base_url="http://direct") as client:
        answer = await client.request(method, path, content=b"body")
    assert (answer.status_code, answer.headers.get("x-by")) == (status, by)
    if by:
        assert answer.content == b"body"


async def test_the_document_names_a_direct_route() -> None:
    transport = httpx.ASGITransport(app())
    async with httpx.AsyncClient(transport=transport, base_url="http://direct") as client:
        document = (await client.get("/openapi.json")).json()
    assert document["paths"]["/items"]["post"]["summary"] == "Echo."
