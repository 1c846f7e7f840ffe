"""Cleaner of an event's texts: the redactor's rules, what a detector found, and the limits of size."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import orjson

from services.router.request import is_plain
from services.router.streamed_answer import CUT_MARGIN
from shared.contracts.conversation import stored_tools
from shared.contracts.events.base import MAX_ID, MAX_TEXT
from shared.redaction import Redacted, Redactor
from shared.redaction.detection import Review
from shared.redaction.turns import clean_tool, clean_turn

PROMPT_BUDGET = 160_000
"""Characters of conversation in an event; of longer ones the end is kept."""
MAX_TOOLS_BYTES = 200_000
TOOLS_CACHED = 32
"""Sets of tool definitions whose stored form is kept, each of at most MAX_TOOLS_BYTES."""
INSTRUCTIONS_CACHED = 128
"""System turns whose redacted form is kept, each of at most MAX_INSTRUCTIONS characters."""
MAX_INSTRUCTIONS = 32_000


class Cleaner:
    """Redacts and cuts the texts of one event, and remembers what it did."""

    __slots__ = ("_redactor", "_review", "budget", "counts", "cut", "limit")

    def __init__(self, redactor: Redactor, budget: int, review: Review | None = None) -> None:
        self._redactor = redactor
        self._review = review
        self.budget = budget
        """Characters of conversation in the event."""
        self.limit = min(MAX_TEXT, budget)
        """Characters of one text."""
        self.counts: dict[str, int] = {}
        self.cut = False
        """A text of the conversation was longer than its limit."""

    def __call__(self, text: str) -> str:
        """A text of the conversation."""
        if len(text) > self.limit:
            self.cut = True
            return self.text(text, self.limit)
        redacted = self._redactor.redact(text)
        if redacted.counts:
            self._count(redacted.counts)
        cleaned = redacted.text[: self.limit]
        return cleaned if self._review is None else self._checked(cleaned, self.limit)

    def text(self, text: str, limit: int) -> str:
        """The redacted text, of at most `limit` characters."""
        cleaned = self._by_rules(text, limit)
        return cleaned if self._review is None else self._checked(cleaned, limit)

    def rules(self, text: str) -> str:
        """A text of the conversation by rules alone: an identifier."""
        self.cut = self.cut or len(text) > self.limit
        return self._by_rules(text, self.limit)

    def identifier(self, text: str) -> str:
        """A field of the context that names a group of requests; no detector is asked about it."""
        return self._by_rules(text, MAX_ID)

    def plain(self, turn: dict[str, Any]) -> dict[str, Any]:
        """A turn that is role and text alone."""
        role, text = turn["role"], turn["content"]
        if role != "system" or len(text) > self.limit or len(text) > MAX_INSTRUCTIONS:
            return {"role": role, "content": self(text)}
        redacted = _instructions(text, self._redactor)
        if redacted.counts:
            self._count(redacted.counts)
        content = redacted.text[: self.limit]
        if self._review is not None:
            content = self._checked(content, self.limit)
        return {"role": role, "content": content}

    def turn(self, turn: dict[str, Any]) -> dict[str, Any]:
        """A turn in the stored form."""
        if is_plain(turn):
            return self.plain(turn)
        cleaned = clean_turn(turn, self)
        if "name" in cleaned:
            cleaned["name"] = cleaned["name"][:MAX_ID]
        for call in cleaned.get("tool_calls", ()):
            if len(call["arguments"]) > self.limit:
                call["arguments"], call["unparsed"] = call["arguments"][: self.limit], True
                self.cut = True
        return cleaned

    def tools(self, tools: list[Any]) -> orjson.Fragment | None:
        """Definitions of tools as JSON; none of them where they are too large together."""
        raw = orjson.dumps(tools)
        if len(raw) <= MAX_TOOLS_BYTES:
            if self._review is None:
                stored, size, counts = _stored_tools(raw, self._redactor)
            else:
                stored, size, counts = _clean_tools(raw, self._redactor, self._review)
            if size <= self.limit:
                self._count(counts)
                return stored
        self.cut = True
        return None

    def _by_rules(self, text: str, limit: int) -> str:
        redacted = self._redactor.redact(text if len(text) <= limit else text[: limit + CUT_MARGIN])
        if redacted.counts:
            self._count(redacted.counts)
        return redacted.text[:limit]

    def _checked(self, cleaned: str, limit: int) -> str:
        """What a detector leaves of a text that went through the rules."""
        assert self._review is not None
        checked = self._review.check(cleaned)
        if checked.counts:
            self._count(checked.counts)
        return checked.text[:limit]

    def _count(self, counts: Mapping[str, int]) -> None:
        for kind, count in counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count


@lru_cache(maxsize=INSTRUCTIONS_CACHED)
def _instructions(text: str, redactor: Redactor) -> Redacted:
    """A system turn's text, redacted. A product sends the same with each request."""
    return redactor.redact(text)


@lru_cache(maxsize=TOOLS_CACHED)
def _stored_tools(
    raw: bytes, redactor: Redactor
) -> tuple[orjson.Fragment | None, int, Mapping[str, int]]:
    """Tools by rules; a product sends the same with each request, and it takes a millisecond."""
    return _clean_tools(raw, redactor, None)


def _clean_tools(
    raw: bytes, redactor: Redactor, review: Review | None
) -> tuple[orjson.Fragment | None, int, Mapping[str, int]]:
    """Tools as the event has them, their characters, and what was redacted."""
    clean = Cleaner(redactor, PROMPT_BUDGET, review)
    tools = [clean_tool(tool, clean) for tool in stored_tools(orjson.loads(raw))]
    size = sum(len(tool["parameters"]) + len(tool.get("description", "")) for tool in tools)
    return orjson.Fragment(orjson.dumps(tools)) if tools else None, size, clean.counts
