"""Assembly of a streamed answer's deltas to what the whole answer would have been."""

from __future__ import annotations

from typing import Any

from shared.contracts.conversation import MAX_CALLS
from shared.contracts.events.base import MAX_ID, MAX_TEXT

CUT_MARGIN = 1_000
"""Read beyond a cut, so that personal data across it is still recognised."""
MAX_READ = MAX_TEXT + CUT_MARGIN
"""Characters that are kept of a text in pieces."""
MORE_THAN_TEXT = (
    "tool_calls",
    "function_call",
    "reasoning_content",
    "reasoning",
    "refusal",
    "audio",
)
"""Fields of an answer beside its content; any of them in a stream is a generated token."""


class StreamedText:
    """A text that comes in pieces, kept up to `MAX_READ` characters."""

    __slots__ = ("_length", "_pieces")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._length = 0

    def add(self, piece: object) -> None:
        """Take the next piece; what is no text is nothing."""
        if piece and isinstance(piece, str) and self._length < MAX_READ:
            self._pieces.append(piece[: MAX_READ - self._length])
            self._length += len(piece)

    def whole(self) -> str:
        """All that was kept."""
        return "".join(self._pieces)


class StreamedCall:
    """A tool call that comes in pieces."""

    __slots__ = ("_arguments", "_id", "_name")

    def __init__(self) -> None:
        self._id = self._name = ""
        self._arguments = StreamedText()

    def add(self, call_id: object, function: object) -> None:
        """Take the next piece. Some engines repeat id and name in each, others send them once."""
        if isinstance(call_id, str):
            self._id = self._id or call_id
        if isinstance(function, dict):
            name = function.get("name")
            if isinstance(name, str) and name != self._name:
                self._name = (self._name + name)[:MAX_ID]
            self._arguments.add(function.get("arguments"))

    def continues(self, call_id: object) -> bool:
        """Whether a piece without an index is of this call."""
        return not call_id or call_id == self._id

    def whole(self) -> dict[str, Any]:
        """The call as a whole answer has it."""
        function = {"name": self._name, "arguments": self._arguments.whole()}
        return {"id": self._id, "type": "function", "function": function}


class StreamedMore:
    """What a stream has beside its content, assembled to what a whole answer would have."""

    __slots__ = ("_audio", "_calls", "_function", "_reasoning", "_refusal")

    def __init__(self) -> None:
        self._calls: dict[int, StreamedCall] = {}
        self._function: StreamedCall | None = None
        self._audio = False
        self._reasoning = StreamedText()
        self._refusal = StreamedText()

    def add(self, delta: dict[str, Any]) -> None:
        """Take what a delta has beside its content."""
        self._reasoning.add(delta.get("reasoning_content") or delta.get("reasoning"))
        self._refusal.add(delta.get("refusal"))
        calls = delta.get("tool_calls")
        if isinstance(calls, list):
            for piece in calls:
                if isinstance(piece, dict):
                    self._call(piece)
        if delta.get("function_call"):
            self._function = self._function or StreamedCall()
            self._function.add(None, delta["function_call"])
        self._audio = self._audio or bool(delta.get("audio"))

    def whole(self) -> dict[str, Any]:
        """The fields of a whole answer's message."""
        more: dict[str, Any] = {}
        if self._calls:
            more["tool_calls"] = [call.whole() for _, call in sorted(self._calls.items())]
        if self._function is not None:
            more["function_call"] = self._function.whole()["function"]
        if reasoning := self._reasoning.whole():
            more["reasoning"] = reasoning
        if refusal := self._refusal.whole():
            more["refusal"] = refusal
        if self._audio:
            more["audio"] = True
        return more

    def _call(self, piece: dict[str, Any]) -> None:
        index, call_id = piece.get("index"), piece.get("id")
        if not isinstance(index, int):
            index = max(self._calls, default=0)
            if index in self._calls and not self._calls[index].continues(call_id):
                index += 1
        call = self._calls.get(index)
        if call is None:
            if len(self._calls) >= MAX_CALLS:
                return
            call = self._calls[index] = StreamedCall()
        call.add(call_id, piece.get("function"))
