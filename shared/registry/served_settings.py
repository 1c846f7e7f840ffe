"""Served settings: a client's request as the engine gets it under a version's settings. Pure."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from shared.contracts.events.interactions import AppliedSettings
from shared.contracts.events.versions import ServedSettings, SettingsRecord

Endpoint = Literal["chat", "completions", "responses"]

SYSTEM_ROLES = frozenset(("system", "developer"))
SEPARATOR = "\n\n"
"""Stands between the version's system prompt and the client's: many chat templates take only one."""
TOOL_FIELDS = ("tools", "tool_choice", "parallel_tool_calls")
"""They go together: a choice names one of the tools beside it."""
CONVERSATION_FIELDS = frozenset((*TOOL_FIELDS, "response_format"))
"""What a raw prompt has no place for."""
TOKEN_FIELDS = frozenset(("max_tokens", "max_completion_tokens", "max_output_tokens"))


def engine_model(record: SettingsRecord) -> str:
    """The name by which the engine knows what a version serves: an adapter's or the base's."""
    return record.adapter_of or record.base


def chat_body(
    version: str, record: SettingsRecord | None, fields: Mapping[str, Any]
) -> dict[str, Any]:
    """A chat request for the engine, as a version is served: by its name, or under its settings."""
    if record is None:
        return {"model": version, **fields}
    settled, applied = apply_settings(record, "chat", fields)
    return {"model": applied.engine_model, **settled}


def put_before(system: str, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The turns with a system prompt before all else: one turn with the one that begins them."""
    if not messages or messages[0].get("role") not in SYSTEM_ROLES:
        return [{"role": "system", "content": system}, *messages]
    first, *others = messages
    theirs: Any = first.get("content") or ""
    joined: Any = (
        system + SEPARATOR + theirs
        if isinstance(theirs, str)
        else [{"type": "text", "text": system + SEPARATOR}, *theirs]
    )
    return [{**first, "content": joined}, *others]


def apply_settings(
    record: SettingsRecord, endpoint: Endpoint, fields: Mapping[str, Any]
) -> tuple[dict[str, Any], AppliedSettings]:
    """The request's fields with the version's settings, and what of them was applied.

    A raw prompt (`completions`) has no roles: it gets sampling defaults alone. A field that the
    client left out or sent as null is the version's; one that it sent is by `precedence`.

    Args:
        record: The version.
        endpoint: Whose fields they are.
        fields: The checked request but its model; they are left as they are.

    """
    settings = record.settings
    found = dict(fields)
    prompted = bool(settings.system) and endpoint != "completions"
    if prompted:
        put_system = _system_of_chat if endpoint == "chat" else _system_of_responses
        found.update(put_system(settings, fields))
    applied: list[str] = []
    for name, value in _values(settings, endpoint, fields):
        if endpoint == "responses":
            found.update(_as_responses(name, value, found))
        else:
            found[name] = value
        applied.append(name)
    if "max_tokens" in applied:
        kept = "max_output_tokens" if endpoint == "responses" else "max_tokens"
        for name in TOKEN_FIELDS - {kept}:
            found.pop(name, None)
    return found, AppliedSettings(
        engine_model=engine_model(record),
        system_sha256=settings.system_sha256 if prompted else "",
        fields=tuple(applied),
    )


def _values(
    settings: ServedSettings, endpoint: Endpoint, fields: Mapping[str, Any]
) -> Iterable[tuple[str, Any]]:
    """The defaults that count in this request, by their names in the chat API."""
    client_wins = settings.precedence == "client"
    tools_sent = bool(fields.get("tools"))
    for name, value in settings.defaults.model_dump(mode="json", exclude_none=True).items():
        if endpoint == "completions" and name in CONVERSATION_FIELDS:
            continue
        sent = (tools_sent and name in TOOL_FIELDS) or _sent(name, endpoint, fields)
        if not (client_wins and sent):
            yield name, value


def _sent(name: str, endpoint: Endpoint, fields: Mapping[str, Any]) -> bool:
    if name == "max_tokens":
        return any(fields.get(one) is not None for one in TOKEN_FIELDS)
    if name == "response_format" and endpoint == "responses":
        return bool(_text(fields).get("format"))
    return fields.get(name) is not None


def _system_of_chat(settings: ServedSettings, fields: Mapping[str, Any]) -> dict[str, Any]:
    turns: list[dict[str, Any]] = fields["messages"]
    if settings.system_rule == "replace":
        turns = [turn for turn in turns if turn.get("role") not in SYSTEM_ROLES]
    return {"messages": put_before(settings.system, turns)}


def _system_of_responses(settings: ServedSettings, fields: Mapping[str, Any]) -> dict[str, Any]:
    theirs, items = fields.get("instructions") or "", fields["input"]
    if settings.system_rule == "before":
        return {"instructions": SEPARATOR.join(filter(None, (settings.system, theirs)))}
    if isinstance(items, list):
        given: list[dict[str, Any]] = items  # pyright: ignore[reportUnknownVariableType]
        items = [item for item in given if item.get("role") not in SYSTEM_ROLES]
    return {"instructions": settings.system, "input": items}


def _as_responses(name: str, value: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A default of the chat API as a field of the Responses API."""
    match name:
        case "max_tokens":
            return {"max_output_tokens": value}
        case "response_format":
            return {"text": {**_text(fields), "format": _flat(value, "json_schema")}}
        case "tools":
            return {name: [_flat(tool, "function") for tool in value]}
        case "tool_choice" if isinstance(value, dict):
            return {name: _flat(value, "function")}  # pyright: ignore[reportUnknownArgumentType]
        case _:
            return {name: value}


def _text(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a request to the Responses API says of the answer's text."""
    text: Any = fields.get("text")
    return text if isinstance(text, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def _flat(value: dict[str, Any], inner: str) -> dict[str, Any]:
    """The Responses API has beside the type what chat has below a name."""
    below: Any = value.get(inner)
    if not isinstance(below, dict):
        return value
    return {**{key: one for key, one in value.items() if key != inner}, **below}
