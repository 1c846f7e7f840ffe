"""An engine double that has every feature of the APIs: tools, reasoning, schemas, n, logprobs.

What it answers depends on the request alone: tool calls where it may call and was not answered yet
(two where the question says "both"), JSON where a schema is asked for, else text. A question that
says "slowly" is answered word by word with pauses, so that it can be cancelled on the way.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

TEXT = "It is 21 degrees in Paris."
JSON_TEXT = '{"city":"Paris","celsius":21}'
REASONING = "The user asks for the weather."
CITIES = ("Paris", "Rome")
PAUSE_S = 0.2
MAX_KEPT = 200

_CREATED = 1_700_000_000
_CHAT_USAGE = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}
_USAGE = {"input_tokens": 12, "output_tokens": 7, "total_tokens": 19}
_DETAILS = {
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens_details": {"reasoning_tokens": 0},
}


class FeaturedEngine:
    """The double's traffic: bodies by path, and streams that were cancelled."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.cancelled = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        body = await request.json()
        self.bodies = [*self.bodies, (request.path, body)][-MAX_KEPT:]
        whole, events = _ANSWERS[request.path]
        if not body.get("stream"):
            return web.json_response(whole(body))
        stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await stream.prepare(request)
        try:
            for event in events(body):
                await stream.write(event.encode() + b"\n\n")
                if "slowly" in json.dumps(body):
                    await asyncio.sleep(PAUSE_S)
        except (ConnectionError, asyncio.CancelledError):
            self.cancelled += 1
            raise
        return stream


@asynccontextmanager
async def serve_featured() -> AsyncIterator[FeaturedEngine]:
    """The double on a free port of loopback."""
    engine = FeaturedEngine()
    app = web.Application(client_max_size=16 * 1024 * 1024)
    for path in _ANSWERS:
        app.router.add_post(path, engine.handle)
    # Cancels a handler whose client left, as vLLM does.
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    engine.url = f"http://{host}:{port}"
    try:
        yield engine
    finally:
        await runner.cleanup()


def _calls(body: dict[str, Any], *, answered: bool) -> list[dict[str, Any]]:
    """The tool calls of the answer: id, name, arguments."""
    if not body.get("tools") or body.get("tool_choice") == "none" or answered:
        return []
    tool = next((tool for tool in body["tools"] if _schema(tool) is not None), None)
    if tool is None:
        return []
    several = "both" in json.dumps(body) and body.get("parallel_tool_calls") is not False
    name = tool.get("function", tool)["name"]
    properties = (_schema(tool) or {}).get("properties", {})
    return [
        {
            "id": f"call_{number}",
            "name": name,
            "arguments": json.dumps(
                {key: _value(kind, city) for key, kind in properties.items()}
                if properties
                else {"city": city}
            ),
        }
        for number, city in enumerate(CITIES[: 2 if several else 1])
    ]


def _schema(tool: dict[str, Any]) -> dict[str, Any] | None:
    function = tool.get("function", tool)
    return function.get("parameters") or function.get("input_schema")


def _value(kind: dict[str, Any], city: str) -> str | int:
    return 21 if kind.get("type") in {"integer", "number"} else city


def _chat_message(body: dict[str, Any]) -> dict[str, Any]:
    calls = _calls(body, answered=body["messages"][-1].get("role") == "tool")
    form = body.get("response_format") or {}
    message: dict[str, Any] = {"role": "assistant", "content": TEXT}
    if calls:
        message["content"] = None
        message["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments"]},
            }
            for call in calls
        ]
    elif form.get("type") in {"json_schema", "json_object"}:
        message["content"] = JSON_TEXT
    if body.get("reasoning_effort"):
        message["reasoning"] = REASONING
    return message


def _logprobs(text: str) -> dict[str, Any]:
    return {
        "content": [
            {"token": word, "logprob": -0.1, "bytes": list(word.encode()), "top_logprobs": []}
            for word in _words(text)
        ]
    }


def _words(text: str) -> list[str]:
    return [word + " " for word in text.split(" ")[:-1]] + [text.rsplit(" ", maxsplit=1)[-1]]


def _chat(body: dict[str, Any]) -> dict[str, Any]:
    message = _chat_message(body)
    choices = [
        {
            "index": index,
            "message": message,
            "finish_reason": "tool_calls" if "tool_calls" in message else "stop",
            "logprobs": _logprobs(message["content"] or "") if body.get("logprobs") else None,
        }
        for index in range(body.get("n") or 1)
    ]
    return {**_chat_head(body, "chat.completion"), "choices": choices, "usage": _CHAT_USAGE}


def _chat_head(body: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": _CREATED, "model": body["model"]}


def _chat_deltas(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": ""}
    if "reasoning" in message:
        yield from ({"reasoning": word} for word in _words(message["reasoning"]))
    for index, call in enumerate(message.get("tool_calls", ())):
        function = call["function"]
        head = {**call, "index": index, "function": {"name": function["name"], "arguments": ""}}
        yield {"tool_calls": [head]}
        for piece in _words(function["arguments"]):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
    yield from ({"content": word} for word in _words(message["content"] or "") if word)


def _chat_events(body: dict[str, Any]) -> Iterator[str]:
    message = _chat_message(body)
    head = _chat_head(body, "chat.completion.chunk")
    end = {"delta": {}, "finish_reason": "tool_calls" if "tool_calls" in message else "stop"}
    steps = [
        {"index": index, "finish_reason": None, **step}
        for step in (*({"delta": delta} for delta in _chat_deltas(message)), end)
        for index in range(body.get("n") or 1)
    ]
    for step in steps:
        if body.get("logprobs") and step["delta"].get("content"):
            step["logprobs"] = _logprobs(step["delta"]["content"])
        yield "data: " + json.dumps({**head, "choices": [step]})
    if (body.get("stream_options") or {}).get("include_usage"):
        yield "data: " + json.dumps({**head, "choices": [], "usage": _CHAT_USAGE})
    yield "data: [DONE]"


def _completion(body: dict[str, Any]) -> dict[str, Any]:
    choice = {"index": 0, "text": TEXT, "finish_reason": "stop", "logprobs": None}
    return {**_chat_head(body, "text_completion"), "choices": [choice], "usage": _CHAT_USAGE}


def _completion_events(body: dict[str, Any]) -> Iterator[str]:
    head = _chat_head(body, "text_completion")
    for word in _words(TEXT):
        yield "data: " + json.dumps({**head, "choices": [{"index": 0, "text": word}]})
    end = {"index": 0, "text": "", "finish_reason": "stop"}
    yield "data: " + json.dumps({**head, "choices": [end], "usage": _CHAT_USAGE})
    yield "data: [DONE]"


def _response_items(body: dict[str, Any]) -> list[dict[str, Any]]:
    given = body["input"]
    last = given[-1] if isinstance(given, list) else {}
    items: list[dict[str, Any]] = []
    if body.get("reasoning"):
        content = [{"type": "reasoning_text", "text": REASONING}]
        items.append({"id": "rs_1", "type": "reasoning", "summary": [], "content": content})
    calls = _calls(body, answered=last.get("type") == "function_call_output")
    for number, call in enumerate(calls):
        function = {"name": call["name"], "arguments": call["arguments"], "status": "completed"}
        item = {"id": f"fc_{number}", "type": "function_call", "call_id": call["id"], **function}
        items.append(item)
    if not calls:
        form = (body.get("text") or {}).get("format") or {}
        text = JSON_TEXT if form.get("type") in {"json_schema", "json_object"} else TEXT
        content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
        end = {"role": "assistant", "status": "completed", "content": content}
        items.append({"id": "msg_1", "type": "message", **end})
    return items


def _response(body: dict[str, Any], *, done: bool = True) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": _CREATED,
        "model": body["model"],
        "status": "completed" if done else "in_progress",
        "output": _response_items(body) if done else [],
        "parallel_tool_calls": True,
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "usage": {**_USAGE, **_DETAILS} if done else None,
    }


def _item_events(index: int, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    at = {"item_id": item["id"], "output_index": index}
    started = {**item, "status": "in_progress"}
    if item["type"] == "function_call":
        started["arguments"] = ""
    else:
        started["content"] = []
    yield {"type": "response.output_item.added", "output_index": index, "item": started}
    if item["type"] == "function_call":
        kind = "response.function_call_arguments"
        for piece in _words(item["arguments"]):
            yield {"type": f"{kind}.delta", "delta": piece, **at}
        yield {"type": f"{kind}.done", "name": item["name"], "arguments": item["arguments"], **at}
    elif item["type"] == "reasoning":
        for word in _words(REASONING):
            event = {"type": "response.reasoning_text.delta", "delta": word, "content_index": 0}
            yield {**event, **at}
    else:
        part, where = item["content"][0], {"content_index": 0, **at}
        empty = {**part, "text": ""}
        yield {"type": "response.content_part.added", "part": empty, **where}
        for word in _words(part["text"]):
            event = {"type": "response.output_text.delta", "delta": word, "logprobs": []}
            yield {**event, **where}
        end = {"type": "response.output_text.done", "text": part["text"], "logprobs": []}
        yield {**end, **where}
        yield {"type": "response.content_part.done", "part": part, **where}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _response_events(body: dict[str, Any]) -> Iterator[str]:
    values = [
        {"type": "response.created", "response": _response(body, done=False)},
        *(
            event
            for index, item in enumerate(_response_items(body))
            for event in _item_events(index, item)
        ),
        {"type": "response.completed", "response": _response(body)},
    ]
    for number, value in enumerate(values):
        yield f"event: {value['type']}\ndata: " + json.dumps({**value, "sequence_number": number})


def _message(body: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [{"type": "text", "text": TEXT}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 12, "output_tokens": 7},
    }


def _message_events(body: dict[str, Any]) -> Iterator[str]:
    usage = {"input_tokens": 12, "output_tokens": 0}
    started = {**_message(body), "content": [], "stop_reason": None, "usage": usage}
    values: list[dict[str, Any]] = [
        {"type": "message_start", "message": started},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *(
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": word},
            }
            for word in _words(TEXT)
        ),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 7},
        },
        {"type": "message_stop"},
    ]
    for value in values:
        yield f"event: {value['type']}\ndata: " + json.dumps(value)


def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
    given = body["input"]
    count = len(given) if isinstance(given, list) else 1
    rows = [{"object": "embedding", "index": at, "embedding": [0.5, -0.5]} for at in range(count)]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return {"object": "list", "model": body["model"], "data": rows, "usage": usage}


def _no_events(_body: dict[str, Any]) -> Iterator[str]:
    yield from ()


_ANSWERS = {
    "/v1/chat/completions": (_chat, _chat_events),
    "/v1/completions": (_completion, _completion_events),
    "/v1/responses": (_response, _response_events),
    "/v1/messages": (_message, _message_events),
    "/v1/embeddings": (_embeddings, _no_events),
}
