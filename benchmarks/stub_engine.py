"""An OpenAI-compatible upstream that costs next to nothing, to load what stands before it.

    python -m benchmarks.stub_engine --port 8000 [--delay 0.05] [--pace 0.1] [--tokens 16]

It answers every POST with the same text under the model that was asked for; with `"stream": true`
as server-sent events, one every `--pace` seconds. `/v1/responses` answers in its own form. `GET` answers
200, so that health checks pass, and `/v1/models` names `assistant`, which gateways ask for. Nothing else
of the API is there. A model whose name contains `fail` answers 500, `missing` 404, `hang` never, `drop`
closes the connection; `torn` closes it in the middle of a stream, and `stall` says no more from there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from typing import Any, cast

import httptools
import uvloop

TEXT = "Your parcel left our warehouse this morning and arrives tomorrow before noon."
_MODEL = re.compile(rb'"model"\s*:\s*"([^"]+)"')
_STREAM = re.compile(rb'"stream"\s*:\s*true')
RESPONSES = b"/v1/responses"
MODELS = b"/v1/models"
_CREATED = 1_700_000_000
_MODEL_LIST = json.dumps(
    {
        "object": "list",
        "data": [
            {"id": "assistant", "object": "model", "created": _CREATED, "owned_by": "ratchet"}
        ],
    }
).encode()


def chat_body(model: str, text: str) -> bytes:
    """A whole answer that fits chat and completions."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "text": text,
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 12, "completion_tokens": 14, "total_tokens": 26}
    value = {
        "id": "chatcmpl-stub",
        "object": "chat.completion",
        "created": _CREATED,
        "model": model,
        "choices": [choice],
        "usage": usage,
    }
    return json.dumps(value).encode()


def stream_events(model: str, text: str, tokens: int) -> list[bytes]:
    """The events of a streamed answer in about `tokens` pieces, usage and end included."""
    size = max(1, len(text) // tokens)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]

    def event(choices: list[Any], **more: Any) -> bytes:
        value = {
            "id": "chatcmpl-stub",
            "object": "chat.completion.chunk",
            "created": _CREATED,
            "model": model,
            "choices": choices,
            **more,
        }
        return b"data: " + json.dumps(value).encode() + b"\n\n"

    events = [event([{"index": 0, "delta": {"role": "assistant", "content": ""}}])]
    events += [
        event([{"index": 0, "delta": {"content": piece}, "text": piece}]) for piece in pieces
    ]
    events.append(event([{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    usage = {"prompt_tokens": 12, "completion_tokens": len(pieces), "total_tokens": 26}
    events.append(event([], usage=usage))
    events.append(b"data: [DONE]\n\n")
    return events


def responses_object(model: str, text: str, *, done: bool = True) -> dict[str, Any]:
    """An answer of the Responses API, or the same before its output is there."""
    content = [{"type": "output_text", "text": text, "annotations": []}]
    message = {
        "id": "msg_stub",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": content,
    }
    details = {"input_tokens_details": {"cached_tokens": 0}}
    details["output_tokens_details"] = {"reasoning_tokens": 0}
    return {
        "id": "resp_stub",
        "object": "response",
        "created_at": _CREATED,
        "model": model,
        "status": "completed" if done else "in_progress",
        "output": [message] if done else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {"input_tokens": 12, "output_tokens": 14, "total_tokens": 26, **details}
        if done
        else None,
    }


def responses_events(model: str, text: str, tokens: int) -> list[bytes]:
    """The events of a streamed answer of the Responses API."""
    size = max(1, len(text) // tokens)
    where = {"item_id": "msg_stub", "output_index": 0, "content_index": 0}
    values: list[dict[str, Any]] = [
        {"type": "response.created", "response": responses_object(model, text, done=False)},
        *(
            {
                "type": "response.output_text.delta",
                "delta": text[at : at + size],
                "logprobs": [],
                **where,
            }
            for at in range(0, len(text), size)
        ),
        {"type": "response.completed", "response": responses_object(model, text)},
    ]
    return [
        f"event: {value['type']}\ndata: {json.dumps({**value, 'sequence_number': number})}\n\n".encode()
        for number, value in enumerate(values)
    ]


def response(status: int, body: bytes, content_type: str = "application/json") -> bytes:
    """A whole HTTP response."""
    head = (
        f"HTTP/1.1 {status} Stub\r\ncontent-type: {content_type}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Stub(asyncio.Protocol):
    """One connection. `seen` is shared: bodies of requests and disconnects, for tests."""

    def __init__(self, delay_s: float, pace_s: float, tokens: int, seen: EngineTraffic) -> None:
        self._delay_s = delay_s
        self._pace_s = pace_s
        self._tokens = tokens
        self._seen = seen
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._url = b""
        self._transport: asyncio.Transport | None = None
        self._running: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self._running is not None and not self._running.done():
            self._running.cancel()
            self._seen.aborted += 1

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body = b""

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        assert self._transport is not None
        found = _MODEL.search(self._body)
        model = found[1].decode() if found else "none"
        self._seen.take(self._body)
        if _STREAM.search(self._body):
            self._running = asyncio.get_running_loop().create_task(self._stream(model))
        elif "hang" in model:
            self._running = asyncio.get_running_loop().create_task(asyncio.sleep(3600))
        elif "drop" in model:
            self._transport.abort()
        elif self._delay_s:
            self._running = asyncio.get_running_loop().create_task(self._later(model))
        else:
            self._transport.write(self._whole(model))

    def _whole(self, model: str) -> bytes:
        if "fail" in model:
            return response(500, b'{"error":{"message":"the stub fails"}}')
        if "missing" in model:
            return response(404, b'{"error":{"message":"no such model"}}')
        if "refuse" in model:
            refusal = f'{{"error":{{"message":"too many tokens for {model}","type":"BadRequest"}}}}'
            return response(400, refusal.encode())
        if self._url == MODELS:
            return response(200, _MODEL_LIST)
        return self._seen.cached(model, responses=self._url == RESPONSES)

    async def _later(self, model: str) -> None:
        assert self._transport is not None
        await asyncio.sleep(self._delay_s)
        self._transport.write(self._whole(model))

    async def _stream(self, model: str) -> None:
        assert self._transport is not None
        if "hang" in model:
            await asyncio.sleep(3600)
        if any(word in model for word in ("fail", "missing", "refuse")):
            self._transport.write(self._whole(model))
            return
        if "drop" in model:
            self._transport.abort()
            return
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        events = responses_events if self._url == RESPONSES else stream_events
        for number, event in enumerate(events(model, TEXT, self._tokens)):
            if "torn" in model and number == 3:
                self._transport.abort()
                return
            self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
            if "stall" in model and number == 3:
                await asyncio.sleep(3600)
            if self._pace_s:
                await asyncio.sleep(self._pace_s)
        self._transport.write(b"0\r\n\r\n")


class EngineTraffic:
    """What all connections saw together; the last bodies only, to stay small."""

    def __init__(self, keep: int = 100) -> None:
        self.requests = 0
        self.aborted = 0
        self.bodies: list[bytes] = []
        self._keep = keep
        self._whole: dict[tuple[str, bool], bytes] = {}

    def take(self, body: bytes) -> None:
        """Note one request."""
        self.requests += 1
        if len(self.bodies) < self._keep:
            self.bodies.append(body)

    def cached(self, model: str, *, responses: bool = False) -> bytes:
        """The whole response for a model."""
        key = (model, responses)
        if key not in self._whole:
            body = json.dumps(responses_object(model, TEXT)).encode()
            self._whole[key] = response(200, body if responses else chat_body(model, TEXT))
        return self._whole[key]


async def serve_stub(
    host: str, port: int, *, delay_s: float = 0.0, pace_s: float = 0.0, tokens: int = 16
) -> tuple[asyncio.Server, EngineTraffic]:
    """Start a stub; port 0 takes a free one. Close the server to end it.

    `delay_s` passes before an answer, `pace_s` (by default as long) after each event of a stream.
    """
    seen = EngineTraffic()
    server = await asyncio.get_running_loop().create_server(
        lambda: Stub(delay_s, pace_s or delay_s, tokens, seen), host, port
    )
    return server, seen


async def run(port: int, delay_s: float, pace_s: float, tokens: int) -> None:
    """Serve until killed."""
    server, _ = await serve_stub("127.0.0.1", port, delay_s=delay_s, pace_s=pace_s, tokens=tokens)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="a stub OpenAI upstream")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--delay", type=float, default=0.0, help="seconds before (each part of) an answer"
    )
    parser.add_argument(
        "--pace", type=float, default=0.0, help="seconds between the events of a stream"
    )
    parser.add_argument("--tokens", type=int, default=16)
    given = parser.parse_args()
    uvloop.run(run(given.port, given.delay, given.pace, given.tokens))


if __name__ == "__main__":
    main()
