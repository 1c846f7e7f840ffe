"""What the router does not read passes as the engine sent it, whole and streamed."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from services.router.proxy import Deadlines
from services.router.relay import HEARTBEAT
from tests.unit.router.conftest import GatewayHarness

LOGPROBS = {
    "content": [
        {
            "token": " Rome",
            "logprob": -0.25,
            "bytes": [32, 82, 111, 109, 101],
            "top_logprobs": [{"token": " Rome", "logprob": -0.25, "bytes": None}],
        }
    ],
    "refusal": None,
}
USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 4,
    "total_tokens": 13,
    "completion_tokens_details": {"reasoning_tokens": 1, "audio_tokens": 2},
    "prompt_tokens_details": {"cached_tokens": 8},
}
AUDIO = {"id": "audio_1", "data": "UklGRg==", "transcript": "Hello", "expires_at": 1_800_000_000}


def chunk(*choices: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m-v1.0",
        "system_fingerprint": "fp_1",
        "choices": list(choices),
        **more,
    }


def choice(index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": None, **more}


STREAMS = {
    "audio deltas": [
        chunk(choice(0, {"role": "assistant", "audio": {"id": "audio_1", "transcript": "Hel"}})),
        chunk(choice(0, {"audio": {"data": "UklG"}})),
        chunk(choice(0, {"audio": {"data": "Rg==", "expires_at": 1_800_000_000}})),
        chunk(choice(0, {}, finish_reason="stop")),
    ],
    "logprobs": [
        chunk(choice(0, {"content": " Rome"}, logprobs=LOGPROBS)),
        chunk(choice(0, {}, finish_reason="stop", logprobs=None, stop_reason=None)),
    ],
    "several choices, also in one chunk": [
        chunk(choice(1, {"content": "b"})),
        chunk(choice(0, {"content": "a"}), choice(2, {"content": "c"})),
        chunk(choice(2, {}, finish_reason="length")),
        chunk(choice(0, {}, finish_reason="stop"), choice(1, {}, finish_reason="stop")),
    ],
    "usage, continuous and at the end": [
        chunk(choice(0, {"content": "a"}), usage={**USAGE, "completion_tokens": 1}),
        chunk(choice(0, {}, finish_reason="stop"), usage=None),
        chunk(usage=USAGE),
    ],
}
WHOLE = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m-v1.0",
    "service_tier": "default",
    "choices": [
        {
            "index": index,
            "message": {"role": "assistant", "content": text, "audio": AUDIO, "annotations": []},
            "finish_reason": "stop",
            "logprobs": LOGPROBS,
        }
        for index, text in enumerate(("a", "b"))
    ],
    "usage": USAGE,
    "kv_transfer_params": None,
}
SILENCE_S = 0.06


async def engine(request: web.Request) -> web.StreamResponse:
    """Streams what the last turn names, silent before each event."""
    body = await request.json()
    if not body.get("stream"):
        return web.json_response(WHOLE)
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for event in STREAMS[body["messages"][-1]["content"]]:
        await asyncio.sleep(SILENCE_S)
        await response.write(b"data: " + orjson.dumps(event) + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    return response


async def start(bench: GatewayHarness, *, heartbeat_s: float) -> None:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", engine)
    server = await bench.stack.enter_async_context(TestServer(app))
    await bench.start(
        engines=(str(server.make_url("")).rstrip("/"),),
        deadlines=Deadlines(60.0, 120.0, heartbeat_s),
    )
    bench.route()


@pytest.mark.parametrize("heartbeat_s", [0.0, SILENCE_S / 4])
@pytest.mark.parametrize("kind", STREAMS)
async def test_events_pass_untouched_with_heartbeats_while_the_engine_is_silent(
    bench: GatewayHarness, kind: str, heartbeat_s: float
) -> None:
    await start(bench, heartbeat_s=heartbeat_s)
    asked = {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": kind}],
    }
    response = await bench.client.post("/v1/chat/completions", json=asked)
    *events, last, end = response.content.split(b"\n\n")
    assert (last, end) == (b"data: [DONE]", b"")
    beats = [event == HEARTBEAT.strip() for event in events]
    # Before the first event, and behind one that has left.
    first = beats.index(False)
    assert (any(beats[:first]), any(beats[first:])) == (heartbeat_s > 0,) * 2
    got = [orjson.loads(event[6:]) for event, beat in zip(events, beats, strict=True) if not beat]
    named = {"id": response.headers["x-ratchet-trace-id"], "model": "m-v1.0"}
    assert got == [{**event, **named} for event in STREAMS[kind]]


async def test_a_whole_answer_passes_untouched(bench: GatewayHarness) -> None:
    await start(bench, heartbeat_s=0.0)
    response = await bench.ask()
    named = {"id": response.headers["x-ratchet-trace-id"], "model": "m-v1.0"}
    assert response.json() == {**WHOLE, **named}
