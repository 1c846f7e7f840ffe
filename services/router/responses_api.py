"""The Responses API: its input as turns, its checks, and its answer read whole or from its events.

Requests and answers are items (messages, reasoning, calls of tools and their outputs) where chat has
turns. They are stored as turns, so that both APIs make the same data. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
from services.router.streamed_answer import MORE_THAN_TEXT

MESSAGE, CALL, OUTPUT, REASONING = (
    "message",
    "function_call",
    "function_call_output",
    "reasoning",
)
KNOWN_ITEMS = frozenset((MESSAGE, CALL, OUTPUT, REASONING))
FUNCTION_TOOLS = frozenset(("function", "custom"))
"""Tools that the client runs. Others would have the engine call something elsewhere."""
NOT_KEPT = {
    "previous_response_id": "the router keeps no responses; send the whole input",
    "conversation": "the router keeps no conversations; send the whole input",
    "prompt": "the router keeps no prompts; send instructions and input",
    "background": "answers are given while the client waits; send the request without it",
}
"""Fields that refer to what a server would have to keep, and what to do instead."""
ENDED = frozenset(("response.completed", "response.incomplete"))
FAILED = frozenset(("response.failed", "error"))
_FINISH = {"max_output_tokens": "length"}


def check_responses_request(payload: dict[str, Any]) -> None:
    """Check what the router reads of a request; drops fields that ask for what it does anyway.

    Raises:
        InvalidRequest: the input is none, or a field asks for what the router does not do; the
            message names the field and the remedy.

    """
    given = payload.get("input")
    if not isinstance(given, (str, list)) or not given:
        raise InvalidRequest(
            "input: must be a non-empty string or list of items; send the prompt", param="input"
        )
    instructions = payload.get("instructions")
    if instructions is not None and not isinstance(instructions, str):
        raise InvalidRequest(
            "instructions: must be a string; send a text or leave it out", param="instructions"
        )
    for index, item in enumerate(given if isinstance(given, list) else ()):
        _check_item(f"input[{index}]", item)
    for name, remedy in NOT_KEPT.items():
        if payload.pop(name, None):
            raise InvalidRequest(f"{name}: {remedy}", param=name)
    if payload.get("store") is False:
        del payload["store"]
    tools = payload.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InvalidRequest(
            "tools: must be a list of objects; send functions or leave it out", param="tools"
        )
    for index, tool in enumerate(tools):
        if str(tool.get("type")) not in FUNCTION_TOOLS:
            raise InvalidRequest(
                f"tools[{index}].type: the engine may call nothing elsewhere; "
                f"must be {' or '.join(sorted(FUNCTION_TOOLS))}",
                param="tools",
            )


def _check_item(place: str, item: object) -> None:
    if not isinstance(item, dict):
        raise InvalidRequest(f"{place}: must be an object; send a message", param="input")
    kind = item.get("type", MESSAGE)
    if kind == "item_reference":
        raise InvalidRequest(
            f"{place}: the router keeps no items; send the item itself", param="input"
        )
    if kind != MESSAGE:
        return
    if not isinstance(item.get("role"), str) or not item["role"]:
        raise InvalidRequest(
            f"{place}.role: must be a non-empty string; send one such as user", param="input"
        )
    content = item.get("content")
    if isinstance(content, str):
        return
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise InvalidRequest(
            f"{place}.content: must be a string or a list of content parts; send a text",
            param="input",
        )


def has_other_items(payload: Mapping[str, Any]) -> bool:
    """Whether the input has items that no turn holds, such as calls of hosted tools."""
    given = payload["input"]
    items = given if isinstance(given, list) else ()
    return any(item.get("type", MESSAGE) not in KNOWN_ITEMS for item in items)


def request_turns(payload: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The turns of a request in OpenAI's chat form; instructions are a system turn."""
    instructions, given = payload.get("instructions"), payload["input"]
    turns = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given, str):
        return [*turns, {"role": "user", "content": given}]
    return [*turns, *item_turns(given)]


def item_turns(items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Turns in chat's form: what the model wrote in one go, reasoning and calls, is one turn."""
    turns: list[dict[str, Any]] = []
    for item in items:
        kind = item.get("type", MESSAGE)
        if kind == OUTPUT:
            call_id, output = item.get("call_id"), item.get("output")
            turns.append({"role": "tool", "tool_call_id": call_id, "content": output})
        elif kind == MESSAGE and item.get("role") != "assistant":
            turns.append({"role": item.get("role"), "content": item.get("content")})
        elif kind in KNOWN_ITEMS:
            _add_to_answer(_answer_turn(turns, kind), kind, item)
    return turns


def _answer_turn(turns: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The turn that an assistant's item belongs to: the one before it, unless that has its text."""
    last = turns[-1] if turns else {}
    fits = last.get("role") == "assistant"
    if kind == MESSAGE:
        fits = fits and not last["content"] and "tool_calls" not in last
    elif kind == REASONING:
        fits = False
    if not fits:
        last = {"role": "assistant", "content": ""}
        turns.append(last)
    return last


def _add_to_answer(turn: dict[str, Any], kind: str, item: Mapping[str, Any]) -> None:
    if kind == CALL:
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        turn.setdefault("tool_calls", []).append(call)
    elif kind == REASONING:
        turn["reasoning"] = _texts(item.get("content")) or _texts(item.get("summary"))
    else:
        content = item.get("content")
        if isinstance(content, list):
            refusal = _texts(content, "refusal")
            if refusal:
                turn["refusal"] = refusal
            content = [part for part in content if part.get("type") != "refusal"]
        turn["content"] = content or ""


def _texts(parts: object, name: str = "text") -> str:
    if not isinstance(parts, list):
        return ""
    texts = (part.get(name) for part in parts if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str) and text)


def read_responses_answer(body: bytes, version: str, trace_id: str) -> tuple[EngineResponse, bytes]:
    """Read a whole answer; returns it and the body for the client, as `response.read_response` does.

    Raises:
        UnreadableResponse: no JSON object, one without output, or a failure under status 200.

    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise UnreadableResponse(f"the engine's answer is not JSON: {error}") from None
    answer = _answer_of(value)
    _hide_instructions(value)
    return answer, rename(value, version, trace_id)


def _hide_instructions(response: dict[str, Any]) -> None:
    """Leave out the repeated system prompt: that of a version is the operator's, and tells the arm."""
    if response.get("instructions"):
        response["instructions"] = None


def _answer_of(value: object) -> EngineResponse:
    if type(value) is not dict or type(value.get("output")) is not list:
        raise UnreadableResponse("the engine's answer has no output")
    if value.get("error"):
        raise UnreadableResponse(failure_text(value["error"]))
    answer = EngineResponse(engine_id=engine_id(value))
    turns = item_turns(item for item in value["output"] if isinstance(item, dict))
    for turn in turns:
        answer.completion += _texts(turn["content"]) if type(turn["content"]) is list else ""
        for name in MORE_THAN_TEXT:
            if turn.get(name):
                had = answer.more.get(name)
                answer.more[name] = turn[name] if had is None else had + turn[name]
    details = value.get("incomplete_details")
    reason = details.get("reason") if isinstance(details, dict) else None
    if isinstance(reason, str):
        answer.finish_reason = _FINISH.get(reason, reason[:64])
    else:
        answer.finish_reason = "tool_calls" if "tool_calls" in answer.more else "stop"
    usage = value.get("usage")
    if isinstance(usage, dict):
        answer.prompt_tokens = count(usage.get("input_tokens"))
        answer.completion_tokens = count(usage.get("output_tokens"))
    return answer


@dataclass(slots=True)
class ResponsesReader(StreamReader):
    """Reads the events of a streamed answer; the last one holds the whole answer.

    `tokens` counts the events that carried something generated, and the end.
    """

    _events: int = 0

    def finish(self) -> EngineResponse:
        """The answer; where the stream broke off, the text as far as it came."""
        if not self.done:
            self.answer.completion = self._text.whole()
        return self.answer

    def failed(self, error: bytes) -> bytes:
        """The event that ends a stream that failed."""
        value = {"type": "error", "sequence_number": self._events, **orjson.loads(error)["error"]}
        value["type"] = "error"
        return _sse(b"error", orjson.dumps(value))

    def _event(self, data: bytes, out: list[bytes]) -> None:
        value = self._read(data)
        if value is None:
            return
        kind = value.get("type")
        if not isinstance(kind, str) or not kind.isprintable() or not kind.isascii():
            raise UnreadableResponse("an event of the engine's stream has no type")
        self._events += 1
        response = value.get("response")
        if kind in FAILED:
            error = response.get("error") if isinstance(response, dict) else value
            self.failure = failure_text(error)
            return
        if kind in ENDED:
            self.answer, self.done = _answer_of(response), True
            self.tokens += 1
        elif kind.endswith(".delta"):
            self.tokens += 1
            if kind == "response.output_text.delta":
                self._text.add(value.get("delta"))
        if isinstance(response, dict):
            response["model"], response["id"] = self.version, self.trace_id
            _hide_instructions(response)
            data = orjson.dumps(value)
        event = _sse(kind.encode(), data)
        if self.done:
            self.last = event
        else:
            out.append(event)


def _sse(kind: bytes, data: bytes) -> bytes:
    return b"event: " + kind + b"\ndata: " + data + b"\n\n"
