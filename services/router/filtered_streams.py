"""Streams behind the output filter: a bounded look-back, or held until their end."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from services.router.answer_texts import (
    ARGUMENTS,
    LONGEST_ESCAPE,
    TEXTS,
    TOKENS,
    answer_texts,
    text_matches,
)
from services.router.filter_rules import (
    FILTERED,
    LOOK_BACK,
    MASK,
    FilterFindings,
    RuleSet,
    spans,
)
from shared.contracts.events.interactions import FilterAction

CHECKS = 8
"""Looks at a text on its way through a look-back: at each token would cost the most."""
MAX_HELD_EVENTS = 4_096
MAX_HELD_BYTES = 8 * 1024 * 1024
"""Memory of one stream."""
MAX_HELD_IN_ALL = 256 * 1024 * 1024
"""Memory of all streams together; beyond it, a stream has its even share."""
VALUE_BYTES = 80
"""What a value, or a field of an object, takes at most beside its text (CPython 3.11, orjson)."""


class FilteredStream(Protocol):
    """A stream's way through the filter."""

    findings: FilterFindings

    def feed(self, data: bytes) -> bytes:
        """Take whole events; returns those that may go to the client."""
        ...

    def finish(self) -> bytes:
        """Take the end; returns the events that are left, or the refusal."""
        ...

    def close(self) -> None:
        """The stream is over, however it ended: what it held back is dropped."""
        ...


@dataclass(slots=True)
class HeldBytes:
    """Memory of all that streams hold back, in bytes.

    A stream within its even share is never over the bound.
    """

    held: int = 0
    streams: int = 0

    def over(self, own: int) -> bool:
        """Whether a stream that holds `own` bytes holds too many."""
        crowded = self.held > MAX_HELD_IN_ALL and own * self.streams > MAX_HELD_IN_ALL
        return own > MAX_HELD_BYTES or crowded


@dataclass(slots=True)
class _HeldShare:
    """What one stream holds back."""

    of: HeldBytes
    held: int = 0

    def __post_init__(self) -> None:
        self.of.streams += 1

    @property
    def over(self) -> bool:
        return self.of.over(self.held)

    def add(self, size: int) -> None:
        self.held += size
        self.of.held += size

    def close(self) -> None:
        self.add(-self.held)
        self.of.streams -= 1


def event_memory(event: bytes) -> int:
    """Most bytes that an event takes once it is parsed and its text waits in its channel.

    Its JSON is no measure: `[[],[]` takes twenty times its length. One wide character makes every
    character of its text four bytes long, and each text is there twice.
    """
    wide = not event.isascii() or b"\\u" in event
    values = sum(map(event.count, (b",", b":", b"{", b"[")))
    return len(event) * (8 if wide else 2) + VALUE_BYTES * values


@dataclass(slots=True)
class _Piece:
    """A text within an event that waits: `holder[key]`, of one channel."""

    holder: dict[str, Any]
    key: str
    channel: tuple[int, str, int]
    """Of which choice, field and tool call."""

    @property
    def text(self) -> str:
        return self.holder[self.key]


@dataclass(slots=True)
class _Channel:
    """A text that comes in pieces. Places count from the beginning of what waits.

    It stays as the model wrote it until it leaves: a mask would change what stands beside a word.
    """

    name: str
    """Its field."""
    pieces: deque[_Piece] = field(default_factory=deque[_Piece])
    text: str = ""
    """What waits, behind its last character that has left."""
    left: int = 0
    """1 where there is such a character."""
    hidden: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    checked: int = 0
    """How far the text was looked at."""
    closed: bool = False

    @property
    def due(self) -> bool:
        return len(self.text) - self.checked >= self.look_back // CHECKS

    @property
    def look_back(self) -> int:
        """Characters that must stand behind a piece before it leaves."""
        return LOOK_BACK * (LONGEST_ESCAPE if self.name == ARGUMENTS else 1)

    def waits(self, piece: _Piece) -> bool:
        """Whether a match may still begin in the first piece."""
        return not self.closed and self.checked - self.left - len(piece.text) < self.look_back

    def take(self, piece: _Piece) -> None:
        self.pieces.append(piece)
        self.text += piece.text
        self.closed = False

    def hide(self, places: Iterable[tuple[int, int]]) -> None:
        self.hidden = spans((*self.hidden, *places))

    def release(self) -> None:
        """Let the first piece go, with a mask where a hidden place begins in it."""
        piece = self.pieces.popleft()
        at, end = self.left, self.left + len(piece.text)
        parts: list[str] = []
        for start, stop in self.hidden:
            if start < end and stop > self.left:
                parts += (self.text[at : max(at, start)], MASK * (start >= self.left))
                at = max(at, min(stop, end))
        parts.append(self.text[at:end])
        piece.holder[piece.key] = "".join(parts)
        cut = max(0, end - 1)
        self.text, self.left, self.checked = self.text[cut:], end - cut, self.checked - cut
        self.hidden = [(start - cut, stop - cut) for start, stop in self.hidden if stop > end]


class LookBackStream:
    """Chunks of chat and completions: a text leaves once LOOK_BACK characters stand behind it.

    Tokens are left out, as they would tell the text at once.
    """

    def __init__(self, rules: RuleSet, held: HeldBytes) -> None:
        self.findings = FilterFindings()
        self._rules = rules
        self._share = _HeldShare(held)
        self._events: deque[tuple[dict[str, Any], list[_Piece], int]] = deque()
        self._channels: dict[tuple[int, str, int], _Channel] = {}
        self._choices: set[int] = set()

    def feed(self, data: bytes) -> bytes:
        """See FilteredStream.feed."""
        fed: set[tuple[int, str, int]] = set()
        for event in data.split(b"\n\n"):
            if not event:
                continue
            value = orjson.loads(event.removeprefix(b"data: "))
            pieces = list(self._pieces(value))
            size = event_memory(event)
            self._events.append((value, pieces, size))
            self._share.add(size)
            for piece in pieces:
                self._close_others(piece.channel)
                name = piece.channel[1]
                self._channels.setdefault(piece.channel, _Channel(name)).take(piece)
                fed.add(piece.channel)
        for channel in (self._channels[name] for name in fed):
            if channel.due:
                self._check(channel, whole=False)
        return self._refusal() if self.findings.blocked else self._release()

    def finish(self) -> bytes:
        """See FilteredStream.finish."""
        if self.findings.blocked:
            return b""
        for channel in self._channels.values():
            self._check(channel, whole=True)
            channel.closed = True
        return self._refusal() if self.findings.blocked else self._release()

    def close(self) -> None:
        """See FilteredStream.close."""
        self._events.clear()
        self._channels.clear()
        self._share.close()

    def _pieces(self, value: dict[str, Any]) -> Iterator[_Piece]:
        choices = value.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                number = choice.get("index", 0)
                self._choices.add(number)
                for name in TOKENS:
                    choice.pop(name, None)
                calls = _call_numbers(choice.get("delta"))
                for holder, key in answer_texts(choice):
                    yield _Piece(holder, key, (number, key, calls.get(id(holder), 0)))

    def _close_others(self, channel: tuple[int, str, int]) -> None:
        """A choice that goes on with another field has ended the one before.

        A tool call that goes on with another one has not: pieces of parallel calls come mixed.
        """
        for name, other in self._channels.items():
            if (
                name[0] == channel[0]
                and name[1] != channel[1]
                and other.pieces
                and not other.closed
            ):
                self._check(other, whole=True)
                other.closed = True

    def _check(self, channel: _Channel, *, whole: bool) -> None:
        matches = text_matches(self._rules, channel.name, channel.text, channel.left, whole=whole)
        self.findings.take(matches)
        channel.checked = len(channel.text)
        channel.hide(match[:2] for match in matches if match.rule.action is FilterAction.mask)

    def _release(self) -> bytes:
        out: list[bytes] = []
        while self._events:
            value, pieces, size = self._events[0]
            waits = any(self._channels[piece.channel].waits(piece) for piece in pieces)
            if waits and not (self._share.over or len(self._events) > MAX_HELD_EVENTS):
                break
            if waits:
                for piece in pieces:
                    self._check(self._channels[piece.channel], whole=True)
                if self.findings.blocked:
                    return b"".join((*out, self._refusal()))
            self._events.popleft()
            self._share.add(-size)
            for piece in pieces:
                self._channels[piece.channel].release()
            out.append(b"data: " + orjson.dumps(value) + b"\n\n")
        return b"".join(out)

    def _refusal(self) -> bytes:
        value = self._events[-1][0] if self._events else {}
        self._events.clear()
        return refusal_event(value, self._choices)


def refusal_event(last: dict[str, Any], choices: Iterable[int]) -> bytes:
    """The event that refuses all choices of a stream, in the shape of one of its events."""
    kept = {name: last[name] for name in ("id", "object", "created", "model") if name in last}
    empty = {"delta": {}} if kept.get("object") == "chat.completion.chunk" else {"text": ""}
    refused = [{"index": number, **empty, "finish_reason": FILTERED} for number in sorted(choices)]
    return b"data: " + orjson.dumps({**kept, "choices": refused}) + b"\n\n"


def _call_numbers(delta: object) -> dict[int, int]:
    """The number of each tool call in a delta, by the identity of the objects that have its texts."""
    calls = delta.get("tool_calls") if isinstance(delta, dict) else None
    found: dict[int, int] = {}
    for place, call in enumerate(calls if isinstance(calls, list) else ()):
        if isinstance(call, dict):
            number = call.get("index")
            for inner in (call.get("function"), call.get("custom")):
                found[id(inner)] = number if isinstance(number, int) else place
    return found


class HeldStream:
    """Streams whose last event repeats the whole answer: held until their end, masking refuses."""

    def __init__(self, rules: RuleSet, held: HeldBytes) -> None:
        self.findings = FilterFindings()
        self._rules = rules
        self._share = _HeldShare(held)
        self._held = bytearray()

    def feed(self, data: bytes) -> bytes:
        """See FilteredStream.feed."""
        self._held += data
        self._share.add(len(data))
        if self._share.over:
            self.findings.action = FilterAction.block
        return b""

    def finish(self) -> bytes:
        """See FilteredStream.finish; a refusal is the relay's to write."""
        deltas: dict[tuple[str, str], list[str]] = {}
        texts: set[tuple[str, str]] = set()
        for event in self._held.split(b"\n\n"):
            _, _, data = event.partition(b"data: ")
            value = orjson.loads(data) if data else {}
            delta = value.get("delta")
            item = str(value.get("output_index", value.get("index")))
            if isinstance(delta, str):
                deltas.setdefault((value["type"], item), []).append(delta)
            elif isinstance(delta, dict):
                for name, text in delta.items():
                    if isinstance(text, str) and name in TEXTS:
                        deltas.setdefault((name, item), []).append(text)
            else:
                # Not every engine sends all in pieces before.
                texts.update((str(key), holder[key]) for holder, key in answer_texts(value))
        texts.update((name, "".join(parts)) for (name, _), parts in deltas.items())
        for name, text in texts:
            self.findings.take(text_matches(self._rules, name, text))
        if self.findings.action is FilterAction.mask:
            self.findings.action = FilterAction.block
        return b"" if self.findings.blocked else bytes(self._held)

    def close(self) -> None:
        """See FilteredStream.close."""
        self._held.clear()
        self._share.close()
