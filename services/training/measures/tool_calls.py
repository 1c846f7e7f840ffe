"""Tool calls in an answer's text, and whether they are valid by the tools' JSON Schemas. Pure."""

# pyright: strict
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

Call = Mapping[str, Any]


def calls_in(answer: str) -> list[Call]:
    """Objects with `name` and `arguments` in a text, as Hermes and Qwen write calls."""
    decoder, found, place = json.JSONDecoder(), list[Call](), 0
    while (place := answer.find("{", place)) >= 0:
        try:
            value, end = decoder.raw_decode(answer, place)
        except ValueError:
            place += 1
            continue
        if {"name", "arguments"} <= value.keys():
            found.append(value)
            place = end
        else:
            place += 1  # a call may lie in an object
    return found


def are_valid(calls: Sequence[Call], tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there is a call, and each names a known tool with arguments by its schema.

    Args:
        calls: What `calls_in` returns.
        tools: Definitions in OpenAI's form, `{"type": "function", "function": {…}}`.

    """
    schemas = {
        tool["function"]["name"]: tool["function"].get("parameters", {"type": "object"})
        for tool in tools
    }
    return bool(calls) and all(_is_valid(call, schemas) for call in calls)


def _is_valid(call: Call, schemas: Mapping[str, Any]) -> bool:
    arguments: Any = call["arguments"]
    try:
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        name = call["name"]
        return (
            isinstance(name, str)
            and name in schemas
            and isinstance(arguments, dict)
            and next(_problems(arguments, schemas[name]), None) is None
        )
    except (ValueError, SchemaError):
        return False


def _problems(arguments: Any, schema: Any) -> Iterator[Any]:
    return Draft202012Validator(schema).iter_errors(arguments)  # pyright: ignore[reportUnknownMemberType]
