"""Content filter on output: whole answers, and streams behind a bounded look-back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson
from prometheus_client import CollectorRegistry, Counter

from services.router.errors import error_body
from services.router.fields import Endpoint
from services.router.filter_rules import (
    LOOK_BACK,
    MASK,
    FilterRules,
    Match,
    RuleSet,
    masked,
    spans,
)
from shared.contracts.events.base import Untrainable
from shared.contracts.events.interactions import FilterAction

FILTERED = "content_filter"
"""`finish_reason` of a refused answer in the OpenAI API."""
CHECK_EVERY = 64
"""Characters of a stream after which it is looked at again: at each token would cost the most."""
MAX_HELD_EVENTS = 4_096
MAX_HELD_BYTES = 4 * 1024 * 1024
INPUT = "input"
"""Arguments of a tool, as a text or as an object whose texts are all the model's."""
_TEXTS = frozenset(
    ("content", "text", "reasoning", "reasoning_content", "refusal", "arguments", "thinking", INPUT)
)
"""Fields of an answer that hold what the model wrote."""
_TOKENS = frozenset(("logprobs", "token_ids"))
"""Fields of an answer that hold it once more, token by token."""
_DELTAS = _TEXTS | {"partial_json"}
_SHAPED: frozenset[Endpoint] = frozenset(("chat", "completions"))
"""Endpoints that have choices; a refusal by the others is an error."""
_SEVERITY = (FilterAction.flag, FilterAction.mask, FilterAction.block)


@dataclass(slots=True)
class FilterFindings:
    """What was found in one answer: the rules' names, and the severest action taken."""

    action: FilterAction | None = None
    rules: dict[str, FilterAction] = field(default_factory=dict)

    @property
    def blocked(self) -> bool:
        """Whether the answer is refused."""
        return self.action is FilterAction.block

    @property
    def untrainable(self) -> tuple[str, ...]:
        """Why an answer is kept out of training: the client did not see what the model wrote."""
        return () if self.action is FilterAction.flag else (Untrainable.filtered.value,)

    def take(self, matches: Sequence[Match]) -> None:
        """Note matches."""
        for match in matches:
            self.rules[match.rule.name] = match.rule.action
            known = -1 if self.action is None else _SEVERITY.index(self.action)
            if _SEVERITY.index(match.rule.action) > known:
                self.action = match.rule.action

    def row(self) -> dict[str, Any]:
        """The findings as the event has them."""
        return {"action": self.action, "rules": sorted(self.rules)}


class FilteredStream(Protocol):
    """A stream's way through the filter."""

    findings: FilterFindings

    def feed(self, data: bytes) -> bytes:
        """Take whole events; returns those that may go to the client."""
        ...

    def finish(self) -> bytes:
        """Take the end; returns the events that are left, or the refusal."""
        ...


class OutputFilter:
    """Applies rules to answers, and counts what they found."""

    def __init__(self, rules: FilterRules, registry: CollectorRegistry) -> None:
        self._rules = rules
        self._found = Counter(
            "ratchet_router_filtered",
            "Answers in which a rule of the output filter found something",
            ("model", "rule", "action"),
            registry=registry,
        )

    def rules(self, tenant: str, model: str) -> RuleSet | None:
        """The rules for an answer; None where it passes as it is."""
        return self._rules.of(tenant, model)

    def note(self, model: str, findings: FilterFindings) -> None:
        """Count what was found in an answer."""
        for rule, action in findings.rules.items():
            self._found.labels(model, rule, action.value).inc()


def filter_whole(
    rules: RuleSet, body: bytes, endpoint: Endpoint
) -> tuple[bytes, int, FilterFindings]:
    """A whole answer's body as the client may see it, its status, and what was found."""
    value = orjson.loads(body)
    findings = FilterFindings()
    changed = False
    for holder, key in _texts(value):
        matches = rules.matches(holder[key])
        findings.take(matches)
        hidden = [match for match in matches if match.rule.action is not FilterAction.flag]
        if hidden:
            holder[key] = masked(holder[key], hidden)
            changed = True
    if changed:
        _drop_tokens(value)
    if findings.blocked:
        if endpoint not in _SHAPED:
            return REFUSAL, 400, findings
        value["choices"] = [_refused(choice) for choice in value["choices"]]
    return orjson.dumps(value) if changed else body, 200, findings


def filtered_stream(rules: RuleSet, endpoint: Endpoint) -> FilteredStream:
    """The filter of one stream."""
    return LookBackStream(rules) if endpoint in _SHAPED else HeldStream(rules)


REFUSAL = error_body(
    "the answer was refused by a content filter", kind="invalid_request_error", code=FILTERED
)


@dataclass(slots=True)
class _Piece:
    """A text within an event that waits: `holder[key]`, of one channel."""

    holder: dict[str, Any]
    key: str
    channel: tuple[int, str]

    @property
    def text(self) -> str:
        return self.holder[self.key]


@dataclass(slots=True)
class _Channel:
    """A text that comes in pieces. Places count from the beginning of what waits.

    It stays as the model wrote it until it leaves: a mask would change what stands beside a word.
    """

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
        return len(self.text) - self.checked >= CHECK_EVERY

    def waits(self, piece: _Piece, look_back: int) -> bool:
        """Whether a match may still begin in the first piece."""
        return not self.closed and self.checked - self.left - len(piece.text) < look_back

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

    def __init__(self, rules: RuleSet) -> None:
        self.findings = FilterFindings()
        self._rules = rules
        self._events: deque[tuple[dict[str, Any], list[_Piece]]] = deque()
        self._channels: dict[tuple[int, str], _Channel] = {}
        self._choices: set[int] = set()

    def feed(self, data: bytes) -> bytes:
        """See FilteredStream.feed."""
        fed: set[tuple[int, str]] = set()
        for event in data.split(b"\n\n"):
            if not event:
                continue
            value = orjson.loads(event.removeprefix(b"data: "))
            pieces = list(self._pieces(value))
            self._events.append((value, pieces))
            for piece in pieces:
                self._close_others(piece.channel)
                self._channels.setdefault(piece.channel, _Channel()).take(piece)
                fed.add(piece.channel)
        for channel in (self._channels[name] for name in fed):
            if channel.due:
                self._check(channel, whole=False)
        return self._refusal() if self.findings.blocked else self._release(LOOK_BACK)

    def finish(self) -> bytes:
        """See FilteredStream.finish."""
        if self.findings.blocked:
            return b""
        for channel in self._channels.values():
            self._check(channel, whole=True)
        return self._refusal() if self.findings.blocked else self._release(0)

    def _pieces(self, value: dict[str, Any]) -> Iterator[_Piece]:
        choices = value.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                number = choice.get("index", 0)
                self._choices.add(number)
                for name in _TOKENS:
                    choice.pop(name, None)
                for holder, key in _texts(choice):
                    yield _Piece(holder, key, (number, key))

    def _close_others(self, channel: tuple[int, str]) -> None:
        """A choice that goes on with another field has ended the one before."""
        for name, other in self._channels.items():
            if name[0] == channel[0] and name != channel and other.pieces and not other.closed:
                self._check(other, whole=True)
                other.closed = True

    def _check(self, channel: _Channel, *, whole: bool) -> None:
        matches = self._rules.matches(channel.text, channel.left, whole=whole)
        self.findings.take(matches)
        channel.checked = len(channel.text)
        channel.hide(match[:2] for match in matches if match.rule.action is FilterAction.mask)

    def _release(self, look_back: int) -> bytes:
        out: list[bytes] = []
        while self._events:
            value, pieces = self._events[0]
            waits = any(self._channels[piece.channel].waits(piece, look_back) for piece in pieces)
            if waits and len(self._events) <= MAX_HELD_EVENTS:
                break
            if waits:
                for piece in pieces:
                    self._check(self._channels[piece.channel], whole=True)
                if self.findings.blocked:
                    return b"".join((*out, self._refusal()))
            self._events.popleft()
            for piece in pieces:
                self._channels[piece.channel].release()
            out.append(b"data: " + orjson.dumps(value) + b"\n\n")
        return b"".join(out)

    def _refusal(self) -> bytes:
        value = self._events[-1][0] if self._events else {}
        self._events.clear()
        choices = [
            {"index": number, "delta": {}, "text": "", "finish_reason": FILTERED}
            for number in sorted(self._choices)
        ]
        kept = {name: value[name] for name in ("id", "object", "created", "model") if name in value}
        unused = "text" if kept.get("object") == "chat.completion.chunk" else "delta"
        for choice in choices:
            del choice[unused]
        return b"data: " + orjson.dumps({**kept, "choices": choices}) + b"\n\n"


class HeldStream:
    """Streams whose last event repeats the whole answer: held until their end, masking refuses."""

    def __init__(self, rules: RuleSet) -> None:
        self.findings = FilterFindings()
        self._rules = rules
        self._held = bytearray()

    def feed(self, data: bytes) -> bytes:
        """See FilteredStream.feed."""
        self._held += data
        if len(self._held) > MAX_HELD_BYTES:
            self.findings.action = FilterAction.block
        return b""

    def finish(self) -> bytes:
        """See FilteredStream.finish; a refusal is the relay's to write."""
        deltas: dict[str, list[str]] = {}
        texts: set[str] = set()
        for event in self._held.split(b"\n\n"):
            _, _, data = event.partition(b"data: ")
            value = orjson.loads(data) if data else {}
            delta = value.get("delta")
            if isinstance(delta, str):
                deltas.setdefault(value["type"], []).append(delta)
            elif isinstance(delta, dict):
                for name, text in delta.items():
                    if isinstance(text, str) and name in _DELTAS:
                        deltas.setdefault(name, []).append(text)
            else:
                # Not every engine sends all in pieces before.
                texts.update(holder[key] for holder, key in _texts(value))
        texts.update("".join(parts) for parts in deltas.values())
        for text in texts:
            self.findings.take(self._rules.matches(text))
        if self.findings.action is FilterAction.mask:
            self.findings.action = FilterAction.block
        return b"" if self.findings.blocked else bytes(self._held)


def _texts(value: Any, *, every: bool = False) -> Iterator[tuple[Any, Any]]:
    """Where in an answer's JSON the model's texts stand: holder and key. With `every`, all are."""
    if isinstance(value, dict):
        places = value.items()
    else:
        places = enumerate(value) if isinstance(value, list) else ()
    for key, one in places:
        if isinstance(one, str):
            if every or key in _TEXTS:
                yield value, key
        else:
            yield from _texts(one, every=every or key == INPUT)


def _drop_tokens(value: Any) -> None:
    """Remove the tokens one by one, which would tell what was masked."""
    if isinstance(value, dict):
        for name in _TOKENS & value.keys():
            del value[name]
        value = list(value.values())
    for one in value if isinstance(value, list) else ():
        _drop_tokens(one)


def _refused(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice without what was written, as the OpenAI API tells of a content filter."""
    empty: dict[str, Any] = {"index": choice.get("index", 0), "finish_reason": FILTERED}
    if "message" in choice:
        return {**empty, "message": {"role": "assistant", "content": None}}
    return {**empty, "text": ""}
