"""Redaction of conversation turns in their stored form: every text, and the texts inside JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

from shared.redaction.detection import by_rules

Clean = Callable[[str], str]

_TEXTS = ("content", "name", "reasoning", "refusal")
MIN_NUMBER = 10**12
"""Smallest number that may be a payment card's: they have 13 digits and more."""


def clean_turn(turn: dict[str, Any], clean: Clean) -> dict[str, Any]:
    """A turn with every text cleaned: content, name, reasoning, refusal, parts and arguments."""
    cleaned = dict(turn)
    for name in _TEXTS:
        if turn.get(name):
            cleaned[name] = clean(turn[name])
    if "tool_calls" in turn:
        cleaned["tool_calls"] = [_clean_call(call, clean) for call in turn["tool_calls"]]
    if "parts" in turn:
        cleaned["parts"] = [
            {**part, "text": clean(part["text"])} if "text" in part else part
            for part in turn["parts"]
        ]
    return cleaned


def clean_tool(tool: dict[str, Any], clean: Clean) -> dict[str, Any]:
    """A tool's definition with its description and the texts of its schema cleaned."""
    cleaned = {**tool, "parameters": clean_json(tool["parameters"], clean)}
    if "description" in tool:
        cleaned["description"] = clean(tool["description"])
    return cleaned


def clean_json(text: str, clean: Clean) -> str:
    """JSON text with every text in it cleaned, keys too; a number that is a card becomes a text."""
    value = _clean_value(json.loads(text), clean)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _clean_call(call: dict[str, Any], clean: Clean) -> dict[str, Any]:
    given = call["arguments"]
    arguments = clean(given) if call.get("unparsed") else clean_json(given, clean)
    return {**call, "arguments": arguments}


def _clean_name(name: str, clean: Clean) -> str:
    """The name of a field, which is an identifier where it is one word."""
    return clean(name) if " " in name else by_rules(clean)(name)


def _clean_value(value: Any, clean: Clean) -> Any:
    match value:
        case str():
            return clean(value)
        case list():
            return [_clean_value(item, clean) for item in cast("list[Any]", value)]
        case dict():
            items = cast("dict[str, Any]", value).items()
            return {_clean_name(name, clean): _clean_value(item, clean) for name, item in items}
        case bool():
            return value
        case int() if abs(value) >= MIN_NUMBER:
            text = str(value)
            return value if clean(text) == text else clean(text)
        case _:
            return value
