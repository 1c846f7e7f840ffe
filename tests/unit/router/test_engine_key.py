"""Engines that ask for a key, or speak https."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from services.router.engine_connection import AttemptDeadlines, ConnectFailed
from services.router.engines import Engines
from services.router.settings import RouterSettings
from shared.clock import SystemClock
from tests.unit.router.conftest import GatewayHarness


@asynccontextmanager
async def engine(asked: list[str]) -> AsyncIterator[str]:
    """The address of an engine whose key is `s`, as vLLM with --api-key s."""

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.headers.get("Authorization", ""))
        if asked[-1] != "Bearer s":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return web.json_response({"choices": []})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


@pytest.mark.parametrize("stream", [False, True])
async def test_engine_with_key(bench: GatewayHarness, stream: bool) -> None:
    asked: list[str] = []
    async with engine(asked) as url:
        await bench.start(engines=(url,))
        bench.route()
        response = await bench.ask(stream=stream)
        assert response.status_code == 502
        assert response.json()["error"]["type"] == "server_error"
        assert "api key" not in response.text.lower()
        assert await bench.attempts() == {("m-v1.0", "", "server_error"): 1}
        assert asked == [""], "the client's own key goes to no engine"


async def test_engine_with_key_that_the_router_has(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("s\n")
    settings = RouterSettings(engine_api_key_file=key)
    assert "Bearer" not in repr(settings)
    asked: list[str] = []
    async with (
        engine(asked) as url,
        Engines((url,), SystemClock(), headers=settings.engine_headers()) as engines,
        engines.request("chat", b"{}", {}, AttemptDeadlines(60.0)) as response,
    ):
        assert response.status == 200


async def test_an_engine_by_https_is_recognised_by_its_authority(tmp_path: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=engine", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key", "-out", "ca"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    served.load_cert_chain(tmp_path / "ca", tmp_path / "key")

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    server = TestServer(app, scheme="https")
    await server.start_server(ssl=served)
    url = str(server.make_url("")).rstrip("/")
    timeout = AttemptDeadlines(60.0)
    try:
        trusted = RouterSettings(engine_ca_file=tmp_path / "ca").engine_tls()
        async with (
            Engines((url,), SystemClock(), tls=trusted) as engines,
            engines.request("chat", b"{}", {}, timeout) as response,
        ):
            assert response.status == 200
        async with Engines((url,), SystemClock()) as engines:
            with pytest.raises(ConnectFailed, match="certificate"):
                await engines.request("chat", b"{}", {}, timeout).__aenter__()
    finally:
        await server.close()


def test_a_key_file_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("RATCHET_ENGINE_API_KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(SystemExit):
        RouterSettings.load()
    assert capsys.readouterr().err.startswith("RATCHET_ENGINE_API_KEY_FILE: ")
