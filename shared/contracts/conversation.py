"""Conversation turns: from OpenAI's request and answer form to the stored form and back. Pure.

The stored form is that of `Message` and `Tool` (contracts.events.base) as plain dicts, as the
router writes them on its hot path. Texts are not cut or redacted here. JSON keeps the order of its
keys: the model wrote that order, and a chat template renders it.
"""

# pyright: strict
from __future__ import annotations

import binascii
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast
from urllib.parse import unquote_to_bytes

from shared.contracts.events.base import MAX_ID, MAX_TEXT, Message, Tool

MAX_CALLS = 128
"""Tool calls of one turn that are kept."""
MAX_PARTS = 1_000
"""Content parts of one turn that are kept."""
MAX_KIND = 16

Turn = dict[str, Any]
Json = dict[str, Any]

_TEXTS = frozenset({"text", "input_text", "output_text"})
_MEDIA = {
    "image_url": "image",
    "input_image": "image",
    "audio_url": "audio",
    "input_audio": "audio",
    "video_url": "video",
    "file": "file",
    "input_file": "file",
}
"""Content parts of OpenAI and vLLM, and what they hold."""
_SOURCES = ("url", "image_url", "data", "file_data", "file_url", "file_id")
_STORED_MEDIA = frozenset({*_MEDIA.values(), "other"})


def compact_json(value: object) -> str:
    """JSON without white space, keys in their order.

    Raises:
        ValueError: the value is no JSON, or a text in it is no Unicode.

    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    return text


def read_json(text: str) -> Any:
    """Parse JSON (RFC 8259) as it is: whole numbers of any size, no NaN.

    Raises:
        ValueError: it is no JSON, or nested too deep.

    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def stored_turn(turn: Mapping[str, Any]) -> Turn:
    """A turn of a request or answer in the stored form; one that has that form keeps it."""
    stored: Turn = {"role": turn.get("role") or "assistant", "content": ""}
    parts, given = turn.get("parts"), turn.get("content")
    _set_content(stored, cast("object", parts if isinstance(parts, list) and parts else given))
    reasoning = turn.get("reasoning_content") or turn.get("reasoning")
    calls = stored_calls(turn)
    more = {
        "name": _identifier(turn.get("name")),
        "tool_calls": calls,
        "tool_call_id": _identifier(turn.get("tool_call_id")),
        "reasoning": reasoning if isinstance(reasoning, str) else "",
        "refusal": turn["refusal"] if isinstance(turn.get("refusal"), str) else "",
    }
    for name, value in more.items():
        if value:
            stored[name] = value
    return stored


def stored_calls(turn: Mapping[str, Any]) -> list[Json]:
    """Tool calls of a turn, in their order; the older `function_call` is one without an id."""
    calls: list[object] = []
    given = turn.get("tool_calls")
    if isinstance(given, list):
        calls = cast("list[object]", given)[:MAX_CALLS]
    elif isinstance(turn.get("function_call"), dict):
        calls = [{"function": turn["function_call"]}]
    return [_stored_call(cast("Json", call)) for call in calls if isinstance(call, dict)]


def stored_tools(tools: object) -> list[Json]:
    """Definitions of tools in the stored form; what is no definition is left out."""
    if not isinstance(tools, list):
        return []
    found: list[Json] = []
    for given in cast("list[object]", tools):
        if not isinstance(given, dict):
            continue
        tool = cast("Json", given)
        kind = tool.get("type")
        inner = tool.get(kind) if isinstance(kind, str) else None
        function = cast("Json", inner) if isinstance(inner, dict) else tool
        name = _identifier(function.get("name")) or _identifier(kind)
        if not name:
            continue
        stored: Json = {"name": name, "parameters": _object(function.get("parameters"))}
        if isinstance(function.get("description"), str) and function["description"]:
            stored["description"] = function["description"]
        found.append(stored)
    return found


def answer_text(turn: Mapping[str, Any]) -> str:
    """An answer for readers that know texts only: its content, else its calls as JSON, else why not.

    The turn is in the stored form.
    """
    if turn["content"]:
        return turn["content"]
    calls = [
        f'{{"name":{compact_json(call["name"])},"arguments":'
        f"{compact_json(call['arguments']) if call.get('unparsed') else call['arguments']}}}"
        for call in turn.get("tool_calls", ())
    ]
    return f"[{','.join(calls)}]" if calls else turn.get("refusal", "")


def has_media(turns: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a turn in the stored form has an image, audio, video or a file."""
    return any(
        part["type"] != "text" for turn in turns if "parts" in turn for part in turn["parts"]
    )


def media_parts(turns: Iterable[Mapping[str, Any]]) -> Iterator[Json]:
    """Content parts of a request's turns, as a client sent them, that are more than text."""
    for turn in turns:
        content = turn.get("content")
        for given in cast("list[object]", content)[:MAX_PARTS] if isinstance(content, list) else ():
            if isinstance(given, dict):
                part = cast("Json", given)
                if _kind(part) in _MEDIA:
                    yield part


def media_bytes(part: Json) -> tuple[str, bytes] | None:
    """SHA-256 in hex and bytes of a part with media; None where it only points to them."""
    kind = _MEDIA[part["type"]]
    data = _inline(_source(part), kind)[2]
    return None if data is None else (hashlib.sha256(data).hexdigest(), data)


def openai_turn(message: Message, *, reasoning: bool = False) -> Turn:
    """A turn as OpenAI's chat endpoint takes it, and datasets hold it: arguments as text, no media.

    Reasoning is left out unless it is asked for: what a model thought is nothing it is asked.
    """
    turn: Turn = {"role": message.role, "content": message.content or message.refusal}
    if reasoning and message.reasoning:
        turn["reasoning_content"] = message.reasoning
    if message.name:
        turn["name"] = message.name
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    return turn


def openai_tools(tools: Iterable[Tool]) -> list[Json]:
    """Definitions as OpenAI's chat endpoint and chat templates take them."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                **({"description": tool.description} if tool.description else {}),
                "parameters": read_json(tool.parameters),
            },
        }
        for tool in tools
    ]


def template_turn(turn: Mapping[str, Any]) -> Turn:
    """One of OpenAI's turns as chat templates take it: with parsed arguments, where they parse."""
    if "tool_calls" not in turn:
        return dict(turn)
    calls = cast("list[Json]", turn["tool_calls"])
    parsed = [
        {**call, "function": {**call["function"], "arguments": _parsed(call["function"])}}
        for call in calls
    ]
    return {**turn, "tool_calls": parsed}


def _parsed(function: Json) -> Any:
    """Arguments for a template. Numbers that no column of a dataset can hold leave them a text."""
    text: str = function["arguments"]
    try:
        value: object = json.loads(text, parse_constant=_refuse_constant, parse_int=_int64)
    except (ValueError, RecursionError):
        return text
    return cast("object", value) if isinstance(value, dict) else text


def _int64(digits: str) -> int:
    value = int(digits)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{digits} has more than 64 bits")
    return value


def _stored_call(call: Json) -> Json:
    inner = call.get("function") or call.get("custom") or call
    function = cast("Json", inner) if isinstance(inner, dict) else {}
    stored: Json = {"name": _identifier(function.get("name"))}
    if identifier := _identifier(call.get("id")):
        stored["id"] = identifier
    given = function.get("arguments", function.get("input"))
    arguments = _arguments(given) if not call.get("unparsed") else None
    if arguments is None:
        stored["arguments"] = given if isinstance(given, str) else str(given)
        stored["unparsed"] = True
    else:
        stored["arguments"] = arguments
    return stored


def _arguments(given: object) -> str | None:
    """Arguments as compact JSON; None where they are no object, or longer than is kept."""
    if given is None or given == "":
        return "{}"
    try:
        if isinstance(given, str):
            if len(given) > MAX_TEXT:
                return None
            given = read_json(given)
        return compact_json(cast("object", given)) if isinstance(given, dict) else None
    except ValueError:
        return None


def _object(given: object) -> str:
    """A JSON Schema as compact JSON; a text is one already where it parses."""
    return _arguments(given) or "{}"


def _set_content(stored: Turn, content: object) -> None:
    if isinstance(content, str):
        stored["content"] = content
        return
    if not isinstance(content, list):
        return
    parts: list[Json] = []
    for given in cast("list[object]", content)[:MAX_PARTS]:
        if isinstance(given, dict):
            part = cast("Json", given)
            said = part.get("refusal") if part.get("type") == "refusal" else None
            if isinstance(said, str):
                stored["refusal"] = said
            else:
                parts.append(_stored_part(part))
    stored["content"] = "\n".join(
        part["text"] if part["type"] == "text" else f"[{part['type']}]" for part in parts
    )
    if has_media([{"parts": parts}]):
        stored["parts"] = parts


def _stored_part(part: Json) -> Json:
    kind = _kind(part)
    if isinstance(part.get("text"), str) and (kind in _TEXTS or kind not in _MEDIA):
        return {"type": "text", "text": part["text"]}
    if kind in _STORED_MEDIA and isinstance(part.get("sha256"), str):
        return _known_fields(part)
    if kind not in _MEDIA:
        return {"type": "other", **_digest(compact_json(part).encode(), "", reference=True)}
    return {"type": _MEDIA[kind], **_media(_source(part), _MEDIA[kind])}


def _kind(part: Json) -> str:
    kind = part.get("type")
    return kind if isinstance(kind, str) else ""


def _source(part: Json) -> Json:
    """What holds a part's data or address."""
    inner = part.get(part["type"])
    return cast("Json", inner) if isinstance(inner, dict) else {**part, "url": inner}


def _known_fields(part: Json) -> Json:
    """A part that has the stored form, without what a client may have put beside it."""
    kept: Json = {"type": part["type"], "sha256": part["sha256"][:64]}
    if type(part.get("size")) is int and part["size"] > 0:
        kept["size"] = part["size"]
    if media_type := _identifier(part.get("media_type")):
        kept["media_type"] = media_type
    if part.get("reference") is True:
        kept["reference"] = True
    return kept


def _media(source: Json, kind: str) -> Json:
    """Digest, size and type of what a part holds or points to."""
    given, media_type, data = _inline(source, kind)
    if data is None:
        return _digest(given.encode(), media_type, reference=True)
    return _digest(data, media_type, reference=False)


def _inline(source: Json, kind: str) -> tuple[str, str, bytes | None]:
    """Data or address as given, the media's type, and its bytes where they are there."""
    given = next((source[name] for name in _SOURCES if isinstance(source.get(name), str)), "")
    form = source.get("format")
    media_type = f"{kind}/{form}" if isinstance(form, str) else ""
    if given.startswith("data:"):
        head, _, body = given[5:].partition(",")
        media_type = head.partition(";")[0] or "text/plain"
        data = _base64(body) if head.endswith(";base64") else unquote_to_bytes(body)
    else:
        data = _base64(given) if given and given == source.get("data") else None
    return given, media_type, data


def _digest(data: bytes, media_type: str, *, reference: bool) -> Json:
    found: Json = {"sha256": hashlib.sha256(data).hexdigest()}
    if not reference:
        found["size"] = len(data)
    if media_type:
        found["media_type"] = media_type[:MAX_ID]
    if reference:
        found["reference"] = True
    return found


def _base64(text: str) -> bytes | None:
    try:
        return binascii.a2b_base64(text)
    except ValueError:
        return None


def _identifier(value: object) -> str:
    return value[:MAX_ID] if isinstance(value, str) else ""


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
