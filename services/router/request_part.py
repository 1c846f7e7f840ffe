"""Request part of an event: all that an event has of its request, built while an engine answers.

It is half of the work of an event; done after the answer, the client would wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from services.router.event_cleaner import Cleaner
from services.router.fields import Endpoint
from services.router.request import ChatRequest, is_plain
from services.router.state import RouteChoice
from shared.contracts.events.base import MAX_ID
from shared.redaction.turns import clean_json
from shared.voters import voter_label

MAX_TURNS = 1_000

_ENDPOINTS: dict[Endpoint, dict[str, str]] = {
    "chat": {"endpoint": "chat"},
    "completions": {"endpoint": "completions"},
    "responses": {"endpoint": "chat", "api": "responses"},
    "embeddings": {"endpoint": "chat", "api": "embeddings"},
    "messages": {"endpoint": "chat", "api": "messages"},
}
"""The event's fields; its `endpoint` is an enumeration that readers of old know two values of."""


@dataclass(slots=True)
class RequestPart:
    """What an event has of its request, for one use: `clean` goes on with the answer's texts."""

    clean: Cleaner
    untrainable: list[str]
    """Why nothing is trained on the request, whatever its answer."""
    opened: bytes
    """The event's JSON object without its end."""


def request_part(
    request: ChatRequest,
    choice: RouteChoice,
    clean: Cleaner,
    *,
    tenant: str,
    key_id: str,
    user_id: str,
    time: str,
) -> RequestPart:
    """The part of a request, redacted by `clean`.

    Args:
        request: The request, as it was read.
        choice: Where it is sent.
        clean: Redacts and cuts; of longer conversations the end is kept, by its budget.
        tenant: Whose key asks.
        key_id: That key.
        user_id: The user, as events store one.
        time: When the request came, as events write it.

    """
    turns = request.turns()
    size = request.plain_size
    fits = size is not None and size < clean.budget and len(turns) <= MAX_TURNS
    kept = turns if fits else _last(turns, clean.budget)
    clean.cut = kept is not turns
    cleaned = clean.turn if size is None else clean.plain
    fields: dict[str, Any] = {
        "trace_id": request.trace_id,
        "tenant": tenant,
        "model": choice.model,
        "rollout": choice.rollout,
        "purpose": request.purpose,
        "context": _clean_context(request.context, clean) if request.context else {},
        **_ENDPOINTS[request.endpoint],
        "stream": request.stream,
        "messages": [cleaned(turn) for turn in kept],
        "started_at": time,
        "user_id": user_id,
    }
    reasons: list[str] = []
    if not request.asks_text_alone:
        fields |= _asked_for(request, clean)
        reasons = request.untrainable(turns)
    if choice.rollout:
        fields["api_key"] = voter_label(key_id)
    if choice.holdout:
        fields["holdout"] = choice.holdout
    return RequestPart(clean, reasons, orjson.dumps(fields)[:-1])


def _asked_for(request: ChatRequest, clean: Cleaner) -> dict[str, Any]:
    """Tools and response format of a request that has them."""
    found: dict[str, Any] = {}
    tools = clean.tools(request.tools) if request.tools else None
    if tools is not None:
        found["tools"] = tools
    if form := request.response_format():
        form = clean_json(form, clean)
        if len(form) <= clean.limit:
            found["response_format"] = form
    return found


def _clean_context(context: dict[str, Any], clean: Cleaner) -> dict[str, Any]:
    """Session ids stay as they are, as they are what joins a session's requests."""
    cleaned: dict[str, Any] = {}
    for name, value in context.items():
        if name == "labels":
            cleaned[name] = {
                label: clean.text(text, len(text) + MAX_ID) for label, text in value.items()
            }
        elif name == "session_id":
            cleaned[name] = value
        else:
            cleaned[name] = clean.identifier(value)
    return cleaned


def _last(turns: list[dict[str, Any]], budget: int) -> list[dict[str, Any]]:
    """The last turns that fit a budget of characters; of the first of them the end of its text."""
    kept: list[dict[str, Any]] = []
    left = budget
    for turn in reversed(turns):
        if left <= 0 or len(kept) == MAX_TURNS:
            return kept[::-1]
        size = len(turn["content"]) if is_plain(turn) else _size(turn)
        if size > left:
            kept.append({"role": turn["role"], "content": turn["content"][-left:]})
            return kept[::-1]
        kept.append(turn)
        left -= size
    return turns


def _size(turn: dict[str, Any]) -> int:
    """Characters of a turn that is more than text."""
    texts = ("content", "reasoning", "refusal")
    size = sum(len(turn.get(name, "")) for name in texts)
    size += sum(len(part.get("text", "")) + MAX_ID for part in turn.get("parts", ()))
    return size + sum(len(call["arguments"]) + MAX_ID for call in turn.get("tool_calls", ()))
