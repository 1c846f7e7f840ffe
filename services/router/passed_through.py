"""Embeddings and Anthropic's Messages API: passed through to an engine that has them, and recorded.

They are served by the same versions and arms, and judged on operations only (errors and latency):
their events say by `api` that they are no chat, and nothing is learned from them. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from services.router.errors import InvalidRequest
from services.router.response import (
    EngineResponse,
    StreamReader,
    UnreadableResponse,
    count,
    engine_id,
    failure_text,
    rename,
)
from shared.contracts.events.interactions import OPERATIONS_ONLY

PASSED_THROUGH = OPERATIONS_ONLY
ABSENT = frozenset((404, 405, 501))
"""What an engine without such an endpoint answers; a 404 about a model names the model."""
_FINISH = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}


def check_passed_through(payload: dict[str, Any], endpoint: str) -> None:
    """Check what the router reads of a request; names the user that Anthropic's metadata names.

    Raises:
        InvalidRequest: without input or messages, or a stream of embeddings is asked for.

    """
    name = "input" if endpoint == "embeddings" else "messages"
    given = payload.get(name)
    if not given or not isinstance(given, (str, list) if name == "input" else list):
        raise InvalidRequest(f"{name}: is not there or empty; send {name}", param=name)
    if endpoint == "embeddings":
        if payload.get("stream"):
            raise InvalidRequest(
                "stream: embeddings are not streamed; leave it out", param="stream"
            )
        return
    if not all(isinstance(turn, dict) and isinstance(turn.get("role"), str) for turn in given):
        raise InvalidRequest(
            'messages: must be objects with a role; send [{"role": "user", "content": "…"}]',
            param="messages",
        )
    metadata = payload.get("metadata")
    if isinstance(metadata, dict) and "user_id" in metadata:
        payload.setdefault("user", metadata["user_id"])
        payload["metadata"] = {key: metadata[key] for key in metadata.keys() - {"user_id"}}


def passed_through_turns(payload: dict[str, Any], endpoint: str) -> list[dict[str, Any]]:
    """What was sent, as turns: the texts of messages, or the input to embed as one user turn."""
    if endpoint == "embeddings":
        given = payload["input"]
        return [{"role": "user", "content": given if isinstance(given, str) else _lines(given)}]
    system = _text(payload.get("system"))
    turns = [{"role": "system", "content": system}] if system else []
    return [
        *turns,
        *(
            {"role": turn["role"], "content": _text(turn.get("content"))}
            for turn in payload["messages"]
        ),
    ]


def _lines(items: list[Any]) -> str:
    return "\n".join(one if isinstance(one, str) else orjson.dumps(one).decode() for one in items)


def _text(content: object) -> str:
    """The text of a string or of content blocks."""
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else ()
    texts = (block.get("text") for block in blocks if isinstance(block, dict))
    return "\n".join(text for text in texts if isinstance(text, str))


def read_embeddings_answer(
    body: bytes, version: str, trace_id: str
) -> tuple[EngineResponse, bytes]:
    """Read the answer to a request for embeddings, which are not recorded.

    Raises:
        UnreadableResponse: no JSON object, or one without data.

    """
    value = _object(body)
    if type(value.get("data")) is not list:
        raise UnreadableResponse("the engine's answer has no data")
    answer = EngineResponse(finish_reason="stop", engine_id=engine_id(value))
    answer.use(value.get("usage"))
    return answer, rename(value, version, trace_id)


def read_messages_answer(body: bytes, version: str, trace_id: str) -> tuple[EngineResponse, bytes]:
    """Read a whole answer of the Messages API.

    Raises:
        UnreadableResponse: no JSON object, or one without content.

    """
    value = _object(body)
    if type(value.get("content")) is not list:
        raise UnreadableResponse("the engine's answer has no content")
    answer = EngineResponse(completion=_text(value["content"]), engine_id=engine_id(value))
    _end(answer, value)
    return answer, rename(value, version, trace_id)


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise UnreadableResponse(f"the engine's answer is not JSON: {error}") from None
    if type(value) is not dict:
        raise UnreadableResponse("the engine's answer is not a JSON object")
    return value


def _end(answer: EngineResponse, value: dict[str, Any]) -> None:
    """Take over why an answer ended, and its tokens, as far as they are there."""
    reason = value.get("stop_reason")
    if isinstance(reason, str):
        answer.finish_reason = _FINISH.get(reason, reason[:64])
    usage = value.get("usage")
    if isinstance(usage, dict):
        answer.prompt_tokens = count(usage.get("input_tokens")) or answer.prompt_tokens
        answer.completion_tokens = count(usage.get("output_tokens")) or answer.completion_tokens


@dataclass(slots=True)
class MessagesReader(StreamReader):
    """Reads the events of a streamed answer of the Messages API; `message_stop` is the end."""

    def failed(self, error: bytes) -> bytes:
        """The event that ends a stream that failed."""
        return _sse("error", {"type": "error", **orjson.loads(error)})

    def _event(self, data: bytes, out: list[bytes]) -> None:
        value = self._read(data)
        if value is None:
            return
        kind = value.get("type")
        if not isinstance(kind, str) or not kind.isidentifier():
            raise UnreadableResponse("an event of the engine's stream has no type")
        if kind == "error":
            self.failure = failure_text(value.get("error"))
            return
        message, delta = value.get("message"), value.get("delta")
        if isinstance(message, dict):
            self.answer.engine_id = engine_id(message)
            _end(self.answer, message)
            message["model"], message["id"] = self.version, self.trace_id
        elif kind == "content_block_delta" and isinstance(delta, dict):
            self.tokens += 1
            self._text.add(delta.get("text"))
        elif kind == "message_delta" and isinstance(delta, dict):
            _end(self.answer, {**delta, "usage": value.get("usage")})
        elif kind == "message_stop":
            self.tokens += 1
            self.done, self.last = True, _sse(kind, value)
            return
        out.append(_sse(kind, value))


def _sse(kind: str, value: dict[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(value) + b"\n\n"
