"""The examples run: their servers answer, and send what they say."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from examples import product_page

ORIGIN = "http://127.0.0.1"


@pytest.fixture
async def ratchet(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A feedback service of straw; what it was sent is in `sent`."""
    app, sent = web.Application(), list[tuple[str, Any]]()

    async def take(request: web.Request) -> web.Response:
        sent.append((request.path, await request.json()))
        status = 201 if request.path == "/v1/invites" else 202
        return web.json_response({"path": "/vote/sign-in?invite=token"}, status=status)

    app.add_routes([web.post("/{path:.*}", take)])
    async with TestServer(app) as server:
        monkeypatch.setattr(product_page, "RATCHET", str(server.make_url("")).rstrip("/"))
        yield sent


async def test_the_product_page_embeds_a_comparison_and_sends_feedback(
    ratchet: list[tuple[str, Any]],
) -> None:
    async with TestClient(TestServer(product_page.application())) as client:
        html = await (await client.get("/")).text()
        assert f'src="{product_page.RATCHET}/vote/embed?origin=http://127.0.0.1:' in html
        assert "&invite=token" in html
        body = {"type": "text_correction", "value": {"corrected": "Unplug it."}}
        answer = await client.post("/feedback", json=body)
        assert answer.status == 202
    assert [path for path, _ in ratchet] == ["/v1/invites", "/v1/feedback"]
    assert ratchet[1][1] == {
        **body,
        "trace_id": product_page.ANSWER,
        "user_id": product_page.USER,
    }
