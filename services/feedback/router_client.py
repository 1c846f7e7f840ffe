"""Router client: chat completions of an explicitly named version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
import orjson

from services.feedback.errors import RouterFailed, RouterUnavailable, invalid
from services.feedback.values import fields_of
from shared.backoff import PASSING_REFUSALS
from shared.contracts.conversation import answer_text, openai_tools, openai_turn, stored_turn
from shared.contracts.events.base import Message, Tool, was_cut
from shared.errors import FieldError
from shared.http.answers import AnswerTooLarge, read_answer
from shared.http.client import request_within

CHAT_PATH = "/v1/chat/completions"
CONNECT_S = 3.0
"""Longest wait for a connection to the router."""
MAX_ANSWER_BYTES = 4 * 1024 * 1024
MAX_REASON = 300
"""Characters of the router's own message that are passed on."""
PASSING = PASSING_REFUSALS | {503, 504}
"""Transient statuses: a retry may succeed."""
SERVER_ERROR = 500


class VersionUnavailable(Exception):
    """The router knows no such version, or no engine serves it."""


@dataclass(frozen=True, slots=True)
class Question:
    """What both sides of a comparison are asked."""

    messages: Sequence[Message]
    max_tokens: int | None
    temperature: float | None
    user_id: str
    metadata: Mapping[str, str]
    tools: Sequence[Tool] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What one version said."""

    version: str
    trace_id: str
    text: str
    cut: bool = False
    turn: Message | None = None
    """The answer, where it is more than text."""


def router_session(max_comparisons: int) -> aiohttp.ClientSession:
    """A session with a connection for every call of so many comparisons at one time, two each.

    With fewer, a call would wait for a free connection, which counts against the connect timeout: the
    router would seem unavailable.
    """
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=2 * max_comparisons))


class RouterClient:
    """The router's chat endpoint with an explicit version."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        *,
        timeout_s: float,
        purpose: Literal["comparison", "evaluation"] = "comparison",
    ) -> None:
        self._session = session
        self._purpose = purpose
        self._url = url.rstrip("/") + CHAT_PATH
        self._timeout_s = timeout_s

    async def answer(
        self, question: Question, version: str, seed: int, *, authorization: str = ""
    ) -> Answer:
        """One version's answer.

        Raises:
            VersionUnavailable: the router refuses this version.
            Invalid: the router refuses the question.
            RouterUnavailable: it cannot be reached in time, or has no engine.
            RouterFailed: it answered something else, or more than MAX_ANSWER_BYTES.

        """
        headers = {"x-ratchet-purpose": self._purpose, "content-type": "application/json"}
        if authorization:
            headers["authorization"] = authorization
        try:
            async with request_within(
                self._timeout_s,
                self._session,
                "POST",
                self._url,
                connect_s=CONNECT_S,
                data=orjson.dumps(_body(question, version, seed)),
                headers=headers,
            ) as response:
                body = await read_answer(response, limit=MAX_ANSWER_BYTES)
                return _answer(response, body, version)
        except AnswerTooLarge as error:
            raise RouterFailed(f"the router failed: {error}; ask for fewer tokens") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise RouterUnavailable(
                f"the router gave no answer: {str(error) or 'timed out'}; try again",
                retry_after_s=2,
            ) from error


def _body(question: Question, version: str, seed: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": version,
        "messages": [openai_turn(turn) for turn in question.messages],
        "seed": seed,
    }
    if question.tools:
        body["tools"] = openai_tools(question.tools)
    if question.max_tokens is not None:
        body["max_tokens"] = question.max_tokens
    if question.temperature is not None:
        body["temperature"] = question.temperature
    if question.user_id:
        body["user"] = question.user_id
    if question.metadata:
        body["metadata"] = dict(question.metadata)
    return body


def _answer(response: aiohttp.ClientResponse, body: bytes, version: str) -> Answer:
    try:
        parsed: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        parsed = None
    if response.status == 200:
        try:
            choice = parsed["choices"][0]
            stored = stored_turn({**choice["message"], "role": "assistant"})
            turn = Message.model_validate(stored)
            return Answer(
                version=response.headers.get("x-ratchet-version") or parsed["model"],
                trace_id=response.headers["x-ratchet-trace-id"],
                text=answer_text(stored),
                cut=was_cut(choice.get("finish_reason") or ""),
                turn=None if turn.is_text else turn,
            )
        except (KeyError, IndexError, TypeError, ValueError):
            raise RouterFailed(
                "the router's answer is no chat completion with an x-ratchet-trace-id; "
                "check that RATCHET_ROUTER_URL names a Ratchet router"
            ) from None
    error = fields_of((fields_of(parsed) or {}).get("error")) or {}
    message = str(error.get("message", ""))[:MAX_REASON]
    param = str(error.get("param", ""))
    if response.status == 404 or (response.status == 400 and param == "model"):
        raise VersionUnavailable(message or f"the router does not serve {version}")
    if response.status in (401, 403):
        raise RouterFailed(
            f"the router refused the key ({response.status}): {message}; "
            "a key for comparisons needs the scopes vote and infer"
        )
    if response.status in PASSING:
        raise RouterUnavailable(
            f"the router cannot answer now: {message}; try again", retry_after_s=2
        )
    if response.status < SERVER_ERROR:
        raise invalid([FieldError(param or "messages", message, "correct it; the router said so")])
    raise RouterFailed(f"the router answered {response.status}: {message}; try again")
