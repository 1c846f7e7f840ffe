"""A client's request: what is read of it, what is checked, and what goes on to the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeGuard

import orjson

from services.router.bounds import AnswerBounds
from services.router.errors import InvalidRequest
from services.router.fields import Endpoint, FieldRules
from services.router.identity import IdentityRules, check_identifier
from services.router.passed_through import (
    PASSED_THROUGH,
    check_passed_through,
    passed_through_turns,
)
from services.router.responses_api import (
    check_responses_request,
    has_other_items,
    request_turns,
)
from shared.contracts.conversation import compact_json, has_media, stored_turn
from shared.contracts.events.base import Untrainable
from shared.contracts.events.interactions import AppliedSettings, Purpose
from shared.contracts.events.versions import SettingsRecord
from shared.registry.served_settings import apply_settings, engine_model

MAX_ROLE = 32
PLAIN_FIELDS = 2
"""Fields of a turn that is role and text alone."""
MAX_METADATA = 16
MAX_METADATA_KEY = 64
MAX_METADATA_VALUE = 512

PROMPT_FIELDS = frozenset(("prompt_logprobs", "return_prompt_text", "return_token_ids"))
"""Fields by which an answer repeats its prompt: a version's is the operator's."""

BEYOND_TEXT = frozenset(
    (
        "tools", "response_format", "n", "echo", "continue_final_message", "add_generation_prompt",
    )
)  # fmt: skip
"""Fields of a chat by which its event has more than texts, or is kept out of training."""

OPENING_FIELDS = ("system", "instructions", "prompt", "messages", "input")
"""Where a request's conversation begins."""
OPENING_TURNS = 2
OPENING_CHARACTERS = 4_096
"""Of each text and address of an opening; a picture's bytes are megabytes."""
OPENING_PARTS = 64
OPENING_DEPTH = 8
NO_BOUNDS = AnswerBounds()
_PICKED = ("category", "locale", "segment", "session_id")
_PURPOSES = {"comparison": Purpose.comparison, "evaluation": Purpose.evaluation}


@dataclass(slots=True)
class ChatRequest:
    """One request, checked as far as the router reads it."""

    endpoint: Endpoint
    model: str
    stream: bool
    payload: dict[str, Any]
    fields: bytes
    user: str
    session: str
    context: dict[str, Any]
    purpose: str
    include_usage: bool
    ignored: tuple[str, ...] = ()
    trace_id: str = ""
    plain_size: int | None = None
    """Characters of a chat whose turns are all role and text alone; None where one is more."""

    def upstream_body(self, version: str) -> bytes:
        """The body for the engine: only fields it may see, and the version as the model."""
        return b'{"model":' + orjson.dumps(version) + b"," + self.fields[1:]

    def settled_body(self, record: SettingsRecord) -> tuple[bytes, AppliedSettings]:
        """The body for the engine under a version's settings, and what of them was applied."""
        fields = orjson.loads(self.fields)
        if self.endpoint == "embeddings" or self.endpoint == "messages":
            applied = AppliedSettings(engine_model=engine_model(record))
        else:
            fields, applied = apply_settings(record, self.endpoint, fields)
        if applied.system_sha256:
            fields = {name: fields[name] for name in fields if name not in PROMPT_FIELDS}
        return orjson.dumps({"model": applied.engine_model, **fields}), applied

    def turns(self) -> list[dict[str, Any]]:
        """The turns as they are stored; a prompt is one user turn."""
        if self.plain_size is not None:
            return self.payload["messages"]
        if self.endpoint == "completions":
            return [{"role": "user", "content": _prompt_text(self.payload["prompt"])}]
        if self.endpoint in PASSED_THROUGH:
            return passed_through_turns(self.payload, self.endpoint)
        turns = (
            request_turns(self.payload)
            if self.endpoint == "responses"
            else self.payload["messages"]
        )
        return [turn if is_plain(turn) else stored_turn(turn) for turn in turns]

    def opening(self) -> bytes:
        """The first two turns, which a conversation keeps: what an engine's prefix cache has of it.

        Texts are cut, and media are not hashed for it.
        """
        found = [self.payload.get(name) for name in OPENING_FIELDS]
        turns = [value[:OPENING_TURNS] if _is_turns(value) else value for value in found]
        return orjson.dumps(_beginning(turns))

    @property
    def asked(self) -> str:
        """The text of the last user turn; empty where it has none."""
        plain = self.plain_size is not None
        turns = self.payload["messages"] if self.endpoint == "chat" else self.turns()
        for turn in reversed(turns):
            if turn["role"] == "user":
                return (turn if plain or is_plain(turn) else stored_turn(turn))["content"]
        return ""

    @property
    def asks_text_alone(self) -> bool:
        """Whether it is a plain chat with no field that makes its answer more than a text."""
        return self.plain_size is not None and self.payload.keys().isdisjoint(BEYOND_TEXT)

    @property
    def tools(self) -> list[Any]:
        """Definitions of the tools that the model could call, as the client sent them."""
        known = self.endpoint in ("chat", "responses")
        tools = self.payload.get("tools") if known else None
        return tools if isinstance(tools, list) else []

    def response_format(self) -> str:
        """The form that was asked for, as JSON; empty where any text will do."""
        form = self.payload.get("response_format")
        if self.endpoint == "responses":
            text = self.payload.get("text")
            form = text.get("format") if isinstance(text, dict) else None
        return compact_json(form) if isinstance(form, dict) else ""

    def untrainable(self, turns: list[dict[str, Any]]) -> list[str]:
        """Why the answer to this request is kept out of training, whatever its feedback."""
        payload, endpoint = self.payload, self.endpoint
        found: list[Untrainable] = []
        if type(payload.get("n")) is int and payload["n"] > 1:
            found.append(Untrainable.several_choices)
        if endpoint == "completions" and type(prompt := payload["prompt"]) is list:
            if type(prompt[0]) is not str:
                found.append(Untrainable.token_ids)
            elif len(prompt) > 1:
                found.append(Untrainable.several_prompts)
        if payload.get("echo"):
            found.append(Untrainable.echo)
        if payload.get("continue_final_message") or payload.get("add_generation_prompt") is False:
            found.append(Untrainable.continued)
        if has_media(turns):
            found.append(Untrainable.media)
        if endpoint in PASSED_THROUGH:
            found.append(Untrainable.passed_through)
        if endpoint == "responses" and has_other_items(payload):
            found.append(Untrainable.other_items)
        return [reason.value for reason in found]


def json_object(body: bytes) -> dict[str, Any]:
    """A request's body.

    Raises:
        InvalidRequest: it is no JSON object.

    """
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"the body is not valid JSON: {error}; send a JSON object in UTF-8"
        ) from None
    if type(payload) is not dict:
        raise InvalidRequest("the body must be a JSON object; send {…}")
    return payload


def read_request(
    endpoint: Endpoint,
    body: bytes,
    headers: Mapping[bytes, bytes],
    rules: FieldRules,
    identity: IdentityRules,
    bounds: AnswerBounds = NO_BOUNDS,
) -> ChatRequest:
    """Read and check a request.

    Raises:
        InvalidRequest: the body is no JSON object, a field that the router reads is of the wrong
            type, or a field is refused or over a bound; the message names the field and the rule.
            Or it is nested too deep.

    """
    payload = json_object(body)
    model = payload.get("model")
    if type(model) is not str or not model:
        raise InvalidRequest(
            "model: must be a non-empty string; send a name that GET /v1/models has", param="model"
        )
    stream = payload.get("stream") or False
    if type(stream) is not bool:
        raise InvalidRequest(
            "stream: must be true or false; send one or leave it out", param="stream"
        )
    plain_size: int | None = None
    if endpoint == "chat":
        plain_size = _check_messages(payload.get("messages"))
    elif endpoint == "responses":
        check_responses_request(payload)
    elif endpoint in PASSED_THROUGH:
        check_passed_through(payload, endpoint)
    else:
        _check_prompt(payload.get("prompt"))
    session = identity.session(headers)
    bounds.apply(endpoint, payload)
    fields, ignored = rules.split(endpoint, payload)
    include_usage = _include_usage(payload.get("stream_options"), stream=stream)
    return ChatRequest(
        endpoint=endpoint,
        model=model,
        stream=stream,
        payload=payload,
        fields=_engine_body(endpoint, fields, stream=stream),
        user=identity.user(payload, headers),
        session=session,
        context=_context(payload.get("metadata"), session),
        purpose=_purpose(headers.get(b"x-ratchet-purpose")),
        include_usage=include_usage,
        ignored=ignored,
        plain_size=plain_size,
    )


def _engine_body(endpoint: Endpoint, fields: dict[str, Any], *, stream: bool) -> bytes:
    """The fields for the engine but the model, as a JSON object; never empty."""
    if endpoint == "responses":
        fields["store"] = False
    elif stream and endpoint != "messages":
        options = fields.get("stream_options") or {}
        fields["stream_options"] = {**options, "include_usage": True}
    try:
        return orjson.dumps(fields)
    except orjson.JSONEncodeError as error:
        raise InvalidRequest(
            f"the body cannot go on to an engine: {error}; nest it less deep"
        ) from None


def _purpose(raw: bytes | None) -> str:
    if not raw:
        return ""
    purpose = _PURPOSES.get(raw.decode("latin-1"))
    if purpose is None:
        raise InvalidRequest(
            f"x-ratchet-purpose: is not known; send one of {', '.join(_PURPOSES)}",
            param="x-ratchet-purpose",
        )
    return purpose.value


def _include_usage(options: object, *, stream: bool) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict):
        raise InvalidRequest(
            "stream_options: must be an object; send one or leave it out", param="stream_options"
        )
    if not stream:
        raise InvalidRequest(
            "stream_options: only allowed when stream is true; leave it out", param="stream_options"
        )
    return bool(options.get("include_usage"))


def _context(metadata: object, session: str) -> dict[str, Any]:
    context: dict[str, Any] = {"session_id": session} if session else {}
    if metadata is None:
        return context
    if not isinstance(metadata, dict) or len(metadata) > MAX_METADATA:
        raise InvalidRequest(
            f"metadata: must be an object with at most {MAX_METADATA} entries; send fewer",
            param="metadata",
        )
    labels: dict[str, str] = {}
    for name, value in metadata.items():
        if not isinstance(value, str) or len(value) > MAX_METADATA_VALUE:
            raise InvalidRequest(
                f"metadata.{name[:MAX_METADATA_KEY]}: must be a string of at most "
                f"{MAX_METADATA_VALUE} characters; send a shorter text",
                param="metadata",
            )
        if name in _PICKED:
            context.setdefault(name, check_identifier(f"metadata.{name}", value))
        elif len(name) > MAX_METADATA_KEY:
            raise InvalidRequest(
                f"metadata: a key is longer than {MAX_METADATA_KEY} characters; send a shorter one",
                param="metadata",
            )
        else:
            labels[name] = value
    if labels:
        context["labels"] = labels
    return context


def _check_messages(messages: object) -> int | None:
    """Check a chat's turns; returns `ChatRequest.plain_size`."""
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest(
            'messages: must be a non-empty list; send [{"role": "user", "content": "…"}]',
            param="messages",
        )
    size, plain = 0, True
    for index, turn in enumerate(messages):
        if type(turn) is not dict:
            raise InvalidRequest(
                f"messages[{index}]: must be an object; send one with role and content",
                param="messages",
            )
        role = turn.get("role")
        if type(role) is not str or not 0 < len(role) <= MAX_ROLE:
            raise InvalidRequest(
                f"messages[{index}].role: must be a string of 1 to {MAX_ROLE} characters; "
                "send one such as user",
                param="messages",
            )
        content = turn.get("content")
        if type(content) is str:
            size += len(content)
            plain = plain and len(turn) == PLAIN_FIELDS
            continue
        plain = False
        if content is None:
            continue
        if type(content) is not list or not all(type(part) is dict for part in content):
            raise InvalidRequest(
                f"messages[{index}].content: must be a string or a list of content parts; "
                "send a text",
                param="messages",
            )
    return size if plain else None


def _check_prompt(prompt: object) -> None:
    if isinstance(prompt, str) and prompt:
        return
    if isinstance(prompt, list) and prompt:
        first = type(prompt[0])
        if first in (str, int, list) and all(type(part) is first for part in prompt):
            return
    raise InvalidRequest(
        "prompt: must be a non-empty string, or a list of strings or of tokens; send a text",
        param="prompt",
    )


def _prompt_text(prompt: str | list[Any]) -> str:
    if isinstance(prompt, str):
        return prompt
    if type(prompt[0]) is str:
        return "\n".join(prompt)
    return orjson.dumps(prompt).decode()


def _is_turns(value: object) -> TypeGuard[list[Any]]:
    return type(value) is list and bool(value) and type(value[0]) is dict


def _beginning(value: Any, depth: int = OPENING_DEPTH) -> Any:
    """A JSON value with its texts and lists cut, and without what is nested deeper."""
    if type(value) is str:
        return value[:OPENING_CHARACTERS]
    if type(value) is list:
        parts = value[:OPENING_PARTS] if depth else ()
        return [_beginning(part, depth - 1) for part in parts]
    if type(value) is dict:
        items = islice(value.items(), OPENING_PARTS if depth else 0)
        return {name[:OPENING_CHARACTERS]: _beginning(part, depth - 1) for name, part in items}
    return value


def is_plain(turn: dict[str, Any]) -> bool:
    """Whether a turn is role and text alone, as most are; its stored form is itself."""
    return len(turn) == PLAIN_FIELDS and type(turn.get("content")) is str
