"""Embeddings and the Messages API: passed through, recorded by their own name, judged on operations only."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import pytest
from aiohttp import web

from services.router.errors import InvalidRequest
from services.router.passed_through import check_passed_through
from shared.contracts.events.api_keys import ApiKeyIssued, Permission
from shared.keys import hash_key
from tests.support.featured_engine import TEXT, serve_featured
from tests.unit.router.conftest import GatewayHarness, error_of

MESSAGE: dict[str, Any] = {
    "model": "m",
    "max_tokens": 16,
    "system": "Be brief.",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "How warm is Paris?"}]}],
    "metadata": {"user_id": "u1", "note": "n"},
    "stop_sequences": ["END"],
}


async def start(bench: GatewayHarness) -> Any:
    engine = await bench.stack.enter_async_context(serve_featured())
    await bench.start(engines=(engine.url,))
    bench.route()
    return engine


async def answered(bench: GatewayHarness) -> bool:
    """Whether the behaviour of any answer was counted."""
    text = (await bench.client.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("ratchet_router_answers_total{")]
    return any(float(line.split()[-1]) for line in lines)


async def test_messages_whole(bench: GatewayHarness) -> None:
    engine = await start(bench)
    answer = await bench.client.post("/v1/messages", json=MESSAGE)
    value = answer.json()
    assert value["content"][0]["text"] == TEXT
    assert (value["model"], value["id"]) == ("m-v1.0", answer.headers["x-ratchet-trace-id"])
    path, body = engine.bodies[-1]
    assert path == "/v1/messages"
    assert body == {k: v for k, v in MESSAGE.items() if k != "metadata"} | {"model": "m-v1.0"}
    (event,) = bench.events()
    assert (event.api, event.user_id, event.completion) == ("messages", "u1", TEXT)
    assert [turn.content for turn in event.messages] == ["Be brief.", "How warm is Paris?"]
    assert event.untrainable == ("passed_through",)
    assert (event.finish_reason, event.prompt_tokens, event.completion_tokens) == ("stop", 12, 7)
    assert event.context.labels == {"note": "n"}
    assert await bench.attempts() == {("m-v1.0", "", "ok"): 1}
    assert not await answered(bench)
    assert (await bench.ask()).status_code == 200
    assert await answered(bench)


async def test_messages_streamed(bench: GatewayHarness) -> None:
    await start(bench)
    answer = await bench.client.post("/v1/messages", json={**MESSAGE, "stream": True})
    blocks = [block.splitlines() for block in answer.text.strip().split("\n\n")]
    values = [orjson.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [name.removeprefix("event: ") for name, _ in blocks] == [v["type"] for v in values]
    assert values[0]["message"]["id"] == answer.headers["x-ratchet-trace-id"]
    assert values[0]["message"]["model"] == "m-v1.0"
    assert values[-1] == {"type": "message_stop"}
    deltas = [v["delta"]["text"] for v in values if v["type"] == "content_block_delta"]
    assert "".join(deltas) == TEXT
    (event,) = bench.events()
    assert (event.completion, event.finish_reason, event.outcome) == (TEXT, "stop", "ok")
    assert (event.prompt_tokens, event.completion_tokens) == (12, 7)
    assert event.ttft_ms is not None


async def test_embeddings(bench: GatewayHarness) -> None:
    engine = await start(bench)
    asked = {"model": "m", "input": ["one", "two"], "encoding_format": "float", "user": "u1"}
    answer = await bench.client.post("/v1/embeddings", json=asked)
    assert [row["embedding"] for row in answer.json()["data"]] == [[0.5, -0.5]] * 2
    assert engine.bodies[-1][1]["input"] == ["one", "two"]
    (event,) = bench.events()
    assert (event.api, event.user_id, event.prompt_tokens) == ("embeddings", "u1", 3)
    assert event.messages[0].content == "one\ntwo"
    assert event.untrainable == ("passed_through",)
    assert not await answered(bench)


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_an_engine_without_the_endpoint_is_no_fault_of_the_candidate(
    bench: GatewayHarness, status: int
) -> None:
    async def absent(_request: web.Request) -> web.Response:
        return web.json_response({"detail": "Not Found"}, status=status)

    app = web.Application()
    app.router.add_post("/v1/embeddings", absent)
    runner = web.AppRunner(app)
    await runner.setup()
    bench.stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    await bench.start(engines=(f"http://{host}:{port}",))
    bench.route(candidate="m-v1.1", weight=10_000)
    answer = await bench.client.post("/v1/embeddings", json={"model": "m", "input": "one"})
    assert answer.status_code == 404
    error_of(answer)
    assert await bench.attempts() == {("m-v1.1", "candidate", "client_error"): 1}


async def test_the_key_of_an_anthropic_client(bench: GatewayHarness) -> None:
    engine = await bench.stack.enter_async_context(serve_featured())
    await bench.start(engines=(engine.url,), keys_required=True)
    bench.route()
    issued = ApiKeyIssued.model_validate(
        {
            "key_id": "k",
            "sha256": hash_key("rk_secret"),
            "tenant": "acme",
            "scopes": [Permission.infer],
            "issued_at": "2026-01-01T00:00:00Z",
        }
    )
    bench.keys.apply("k", issued.model_dump_json().encode())
    statuses = [
        (
            await bench.client.post("/v1/messages", json=MESSAGE, headers={"x-api-key": key})
        ).status_code
        for key in ("rk_secret", "rk_other")
    ]
    assert statuses == [httpx.codes.OK, httpx.codes.UNAUTHORIZED]


@pytest.mark.parametrize(
    ("endpoint", "payload", "param"),
    [
        ("embeddings", {}, "input"),
        ("embeddings", {"input": []}, "input"),
        ("embeddings", {"input": 5}, "input"),
        ("embeddings", {"input": "x", "stream": True}, "stream"),
        ("messages", {"messages": []}, "messages"),
        ("messages", {"messages": "hi"}, "messages"),
        ("messages", {"messages": [{"content": "hi"}]}, "messages"),
    ],
)
def test_refused(endpoint: str, payload: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        check_passed_through(payload, endpoint)
    assert raised.value.param == param
