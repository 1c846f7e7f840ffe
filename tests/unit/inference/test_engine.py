from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from services.inference.drain_middleware import BODY
from services.inference.engine import (
    EngineClient,
    EngineLoad,
    ServedModels,
    error_message,
    parse_load,
)
from services.inference.engine_command import engine_command, engine_environment
from services.inference.errors import EngineTimedOut, EngineUnavailable
from services.inference.settings import InferenceSettings
from tests.unit.inference.fake_engine import FakeEngine

METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{engine="0",model_name="base"} %d.0
vllm:num_requests_waiting{engine="0",model_name="base"} %d.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="base",reason="capacity"} 7.0
vllm:lora_requests_info{max_lora="4",running_lora_adapters="",waiting_lora_adapters=""} 1.795e+09
vllm:lora_requests_info{max_lora="4",running_lora_adapters="v1,v2",waiting_lora_adapters="v3"} \
1.7952471929063175e+09
vllm:lora_requests_info{max_lora="4",running_lora_adapters="v9",waiting_lora_adapters=""} 1.7e+09
"""


def test_newest_series_says_who_is_busy() -> None:
    assert parse_load(METRICS % (3, 1)) == EngineLoad(3, 1, frozenset({"v1", "v2", "v3"}))


def test_idle_engine_is_busy_with_nobody() -> None:
    assert parse_load(METRICS % (0, 0)) == EngineLoad(0, 0, frozenset())
    assert parse_load("") == EngineLoad(0, 0, frozenset())


def test_error_is_the_engines_word_or_the_beginning_of_what_came() -> None:
    assert error_message(b'{"error":{"message":"no such model"}}') == "no such model"
    assert error_message(b"<html>" + b"x" * 1000) == "<html>" + "x" * 394
    assert error_message(b'["odd"]') == '["odd"]'


async def test_engine_with_key_takes_the_agents_and_the_batch_workers_requests(
    tmp_path: Path,
) -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Bearer s":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return web.json_response({"data": [{"id": "base"}]})

    key = tmp_path / "key"
    key.write_text("s")
    settings = InferenceSettings(engine_api_key_file=key)
    app = web.Application()
    app.router.add_get("/v1/models", answer)
    async with TestServer(app) as server:
        url = str(server.make_url("")).rstrip("/")
        async with aiohttp.ClientSession(headers=settings.engine_headers()) as session:
            assert await EngineClient(session, url).models() == ServedModels(("base",))
        async with aiohttp.ClientSession() as session:
            # No refusal of what was asked: an adapter must not be blamed for it.
            with pytest.raises(EngineUnavailable, match="RATCHET_ENGINE_API_KEY_FILE"):
                await EngineClient(session, url).models()
    assert engine_environment(settings, {})["VLLM_API_KEY"] == "s"
    assert "s" not in engine_command(settings)


@pytest.mark.parametrize(("health", "models", "well"), [(404, 200, True), (404, 500, False)])
async def test_an_engine_without_a_health_path_is_asked_for_its_models(health, models, well):
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=models if request.path == "/v1/models" else health)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        assert await EngineClient(session, str(server.make_url("")).rstrip("/")).healthy() is well


async def test_an_engine_that_drains_is_away_and_refuses_no_request_for_good() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=503, body=BODY)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        client = EngineClient(session, str(server.make_url("")).rstrip("/"))
        with pytest.raises(EngineUnavailable, match="takes no new requests"):
            await client.generate({}, timeout_s=60)


async def test_an_engine_that_takes_too_long_had_the_request_and_no_other_should_have_it() -> None:
    async def answer(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        client = EngineClient(session, str(server.make_url("")).rstrip("/"))
        with pytest.raises(EngineTimedOut, match="no answer within") as raised:
            await client.generate({}, timeout_s=0.05)
    assert raised.value.status == 504


@pytest.mark.parametrize("refusals", [0, 1])
async def test_a_refusal_is_an_answer(refusals: int) -> None:
    """A base without a chat template refuses the request, and serves all the same."""
    async with aiohttp.ClientSession() as session:
        with FakeEngine() as engine:
            engine.fail_generations = refusals
            assert await EngineClient(session, engine.url).answers()
            assert ("completions", "base") in engine.calls


async def test_an_engine_that_is_gone_does_not_answer() -> None:
    with FakeEngine() as engine:
        url = engine.url
    async with aiohttp.ClientSession() as session:
        assert not await EngineClient(session, url).answers()
