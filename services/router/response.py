"""What an engine answered: read from a whole body or from the events of a stream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from services.router.errors import error_value
from services.router.streamed_answer import MORE_THAN_TEXT, StreamedMore, StreamedText
from shared.contracts.conversation import stored_turn
from shared.contracts.events.base import MAX_ID

DONE = b"[DONE]"
_MORE = frozenset(MORE_THAN_TEXT)
MAX_EVENT_BYTES = 4 * 1024 * 1024
"""Longest event of a stream; an engine that sends a longer one is taken for broken."""
ABORTED = "abort"
"""vLLM's finish_reason, under status 200, of answers that it gives up as it stops."""


class UnreadableResponse(Exception):
    """The engine's answer is not what its API promises; the message says what was found."""


class AnswerGivenUp(UnreadableResponse):
    """The engine stops, and gave its answer up where it was."""


@dataclass(slots=True)
class EngineResponse:
    """Text, end and tokens of an answer; of several choices the first.

    `more` has the fields of `MORE_THAN_TEXT` that the answer has, in OpenAI's whole form.
    """

    completion: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    engine_id: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    def turn(self) -> dict[str, Any] | None:
        """The answer as a stored turn; None where it is text alone."""
        if not self.more:
            return None
        turn = stored_turn({"role": "assistant", "content": self.completion, **self.more})
        return turn if len(turn) > len(("role", "content")) else None

    def use(self, usage: object) -> None:
        """Take over token counts."""
        if isinstance(usage, dict):
            self.prompt_tokens = count(usage.get("prompt_tokens"))
            self.completion_tokens = count(usage.get("completion_tokens"))


def read_response(body: bytes, version: str, trace_id: str) -> tuple[EngineResponse, bytes]:
    """Read a whole answer; returns it and the body for the client.

    There `model` is the version that answered and `id` the trace id, by which clients can send
    feedback; the engine's own id is in the answer.

    Raises:
        UnreadableResponse: no JSON object, or one without choices.

    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise UnreadableResponse(f"the engine's answer is not JSON: {error}") from None
    choices = value.get("choices") if type(value) is dict else None
    if type(choices) is not list or not choices or type(choices[0]) is not dict:
        raise UnreadableResponse("the engine's answer has no choices")
    answer = EngineResponse()
    first = choices[0]
    message = first.get("message")
    if type(message) is dict:
        answer.completion = _content_text(message.get("content"))
        if not _MORE.isdisjoint(message):
            answer.more = {name: message[name] for name in MORE_THAN_TEXT if message.get(name)}
    else:
        answer.completion = _content_text(first.get("text"))
    answer.finish_reason = _reason(first)
    answer.use(value.get("usage"))
    answer.engine_id = engine_id(value)
    return answer, rename(value, version, trace_id)


def read_error(status: int, body: bytes) -> tuple[str, bytes]:
    """An engine's 4xx: its message, and the body for the client in OpenAI's shape."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = None
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        known = {name: error.get(name) for name in ("message", "type", "param", "code")}
        return error["message"], orjson.dumps({"error": known})
    message = f"the engine refused the request with status {status}"
    if isinstance(value, dict) and isinstance(value.get("message"), str):
        message = value["message"]
    shaped = error_value(message, kind="invalid_request_error", code=None)
    return message, orjson.dumps({"error": shaped})


@dataclass(slots=True)
class StreamReader:
    """Reads a stream of server-sent events as it passes.

    The engine is always asked for usage; a client that did not ask does not see it. `model` and
    `id` of each event become the version and the trace id, as in a whole answer.
    """

    version: str
    trace_id: str
    include_usage: bool
    answer: EngineResponse = field(default_factory=EngineResponse)
    done: bool = False
    failure: str = ""
    tokens: int = 0
    last: bytes = b"data: [DONE]\n\n"
    """The stream's end, to be sent once the event is kept."""
    _rest: bytes = b""
    _text: StreamedText = field(default_factory=StreamedText)
    _more: StreamedMore | None = None

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the engine; returns the bytes for the client.

        `done` is set at the stream's own end, which is not in what is returned. `failure` is set
        when an event reports an error; what follows is not read. `tokens` counts the events
        that carried text or ended the answer.

        Raises:
            UnreadableResponse: an event is no JSON object, or has no end.

        """
        data = (self._rest + data).replace(b"\r\n", b"\n") if self._rest or b"\r" in data else data
        *events, self._rest = data.split(b"\n\n")
        if len(self._rest) > MAX_EVENT_BYTES:
            raise UnreadableResponse(
                f"an event of the engine's stream is over {MAX_EVENT_BYTES} bytes"
            )
        out: list[bytes] = []
        for event in events:
            if self.done or self.failure:
                break
            start = 0 if event.startswith(b"data:") else event.find(b"\ndata:") + 1
            if start or event.startswith(b"data:"):
                self._event(event[start + 5 :].strip(), out)
        return b"".join(out)

    def finish(self) -> EngineResponse:
        """The answer as far as it came."""
        self.answer.completion = self._text.whole()
        if self._more is not None:
            self.answer.more = self._more.whole()
        return self.answer

    def failed(self, error: bytes) -> bytes:
        """The event that ends a stream that failed; `error` is the body of a whole failure."""
        return b"data: " + error + b"\n\n"

    def _event(self, data: bytes, out: list[bytes]) -> None:
        value = self._read(data)
        if value is None:
            self.done = True
            return
        if not value.get("choices") and ("error" in value or value.get("object") == "error"):
            self.failure = failure_text(value.get("error") or value.get("message"))
            return
        self._chunk(value, out)

    def _read(self, data: bytes) -> dict[str, Any] | None:
        """An event's object; None for the mark at a stream's end."""
        if data == DONE:
            return None
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise UnreadableResponse(
                f"an event of the engine's stream is not JSON: {error}"
            ) from None
        if type(value) is not dict:
            raise UnreadableResponse("an event of the engine's stream is not a JSON object")
        return value

    def _chunk(self, value: dict[str, Any], out: list[bytes]) -> None:
        choices = value.get("choices")
        if not self.answer.engine_id:
            self.answer.engine_id = engine_id(value)
        if "usage" in value:
            self.answer.use(value["usage"])
            if not self.include_usage:
                if not choices:
                    return
                del value["usage"]
        if isinstance(choices, list) and choices and type(choices[0]) is dict:
            self._choice(choices[0])
        out.append(b"data: " + rename(value, self.version, self.trace_id) + b"\n\n")

    def _choice(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta")
        more = False
        if type(delta) is dict:
            text = delta.get("content")
            # Most events of a stream are content alone, and cost no look at the other fields.
            more = len(delta) > 1 or text is None
            more = more and any(delta.get(name) for name in MORE_THAN_TEXT)
        else:
            text = choice.get("text")
        reason = _reason(choice)
        if text or reason or more:
            self.tokens += 1
        if choice.get("index", 0) != 0:
            return
        if text:
            self._text.add(text)
        if more and type(delta) is dict:
            self._more = self._more or StreamedMore()
            self._more.add(delta)
        if reason:
            self.answer.finish_reason = reason


def rename(value: dict[str, Any], version: str, trace_id: str) -> bytes:
    """The engine's JSON under the version's name and the trace id.

    Raises:
        UnreadableResponse: it cannot be written again.

    """
    value["model"] = version
    value["id"] = trace_id
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise UnreadableResponse(f"the engine's answer cannot be passed on: {error}") from None


def engine_id(value: dict[str, Any]) -> str:
    """The id that the engine gave its answer; empty where it is none."""
    name = value.get("id")
    return name if isinstance(name, str) and len(name) <= MAX_ID and name.isprintable() else ""


def _content_text(content: object) -> str:
    """The text of a content; some engines answer with a list of parts."""
    if isinstance(content, str):
        return content
    return stored_turn({"content": content})["content"] if isinstance(content, list) else ""


def _reason(choice: dict[str, Any]) -> str:
    """Why the engine ended the choice.

    Raises:
        AnswerGivenUp: the engine stops.

    """
    reason = choice.get("finish_reason")
    if reason == ABORTED:
        raise AnswerGivenUp("the engine gave the answer up: finish_reason abort")
    return reason[:64] if isinstance(reason, str) else ""


def count(value: object) -> int:
    """A count of tokens; 0 for what is none."""
    return value if isinstance(value, int) and value >= 0 else 0


def failure_text(error: object) -> str:
    """What an engine says of its failure."""
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or "the engine reported an error")
