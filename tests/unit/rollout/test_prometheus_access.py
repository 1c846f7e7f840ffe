"""Prometheus behind a proxy: credentials, GET, and errors that say what came."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from services.rollout.errors import EvidenceUnavailable
from services.rollout.prometheus import Prometheus, PrometheusAccess
from services.rollout.settings import RolloutSettings

EMPTY = {"status": "success", "data": {"resultType": "matrix", "result": []}}


@asynccontextmanager
async def proxy(authorization: str, *, posts: bool = True) -> AsyncIterator[tuple[str, list[str]]]:
    """A proxy's address that wants one Authorization, and the tenants it was asked for."""
    tenants: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != authorization:
            return web.Response(status=401, text="<html>Log in</html>", content_type="text/html")
        if request.method == "POST" and not posts:
            return web.json_response({"message": "forbidden"}, status=403)
        tenants.append(request.headers.get("X-Scope-OrgID", ""))
        query = (await request.post() if request.method == "POST" else request.query).get("query")
        assert query == "x[1m]"
        return web.json_response(EMPTY)

    app = web.Application()
    app.router.add_route("*", "/api/v1/query", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("")), tenants


async def test_prometheus_behind_token(tmp_path: Path) -> None:
    token, headers = tmp_path / "token", tmp_path / "headers"
    token.write_text("wrong\n")
    headers.write_text("X-Scope-OrgID: prod\n\n")
    access = PrometheusAccess(token_file=token, headers_file=headers)
    async with proxy("Bearer t") as (url, tenants), aiohttp.ClientSession() as session:
        prometheus = Prometheus(session, url, access=access)
        with pytest.raises(EvidenceUnavailable, match="status 401: <html>Log in") as raised:
            await prometheus.samples("x[1m]")
        assert "wrong" not in str(raised.value)
        token.write_text("t\n")
        assert await prometheus.samples("x[1m]") == []
        assert tenants == ["prod"]
        token.unlink()
        with pytest.raises(EvidenceUnavailable, match="RATCHET_PROMETHEUS_TOKEN_FILE"):
            await prometheus.samples("x[1m]")


async def test_prometheus_behind_token_that_refuses_post(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("b")
    basic = {"username": "a", "password_file": password}
    async with proxy("Basic YTpi", posts=False) as (url, _), aiohttp.ClientSession() as session:
        with pytest.raises(EvidenceUnavailable, match=r"status 403: \{\"message\": \"forbidden"):
            await Prometheus(session, url, access=PrometheusAccess(**basic)).samples("x[1m]")
        get = PrometheusAccess(method="GET", **basic)
        assert await Prometheus(session, url, access=get).samples("x[1m]") == []


def test_credentials_that_exclude_each_other_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RATCHET_PROMETHEUS_USERNAME", "a")
    with pytest.raises(SystemExit):
        RolloutSettings.load()
    assert capsys.readouterr().err.startswith("RATCHET_PROMETHEUS_USERNAME: must be set together")
