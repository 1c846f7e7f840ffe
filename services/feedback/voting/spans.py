"""Marked spans: parts of an answer that a rater liked or disliked, and the text they lead to. Pure.

A disliked span makes a finer pair than a vote: the answer without the sentences that it touches is
chosen over the whole answer. Liked spans are never taken out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import compress
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shared.contracts.events.base import MAX_TEXT

MAX_SPANS = 20
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


class MarkedSpan(BaseModel):
    """A part of an answer's text, in characters; `end` is exclusive."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    start: Annotated[int, Field(ge=0, lt=MAX_TEXT)]
    end: Annotated[int, Field(gt=0, le=MAX_TEXT)]
    liked: bool

    @model_validator(mode="after")
    def _is_not_empty(self) -> MarkedSpan:
        if self.end <= self.start:
            raise ValueError("end: must lie behind start")
        return self

    def touches(self, start: int, end: int) -> bool:
        """Whether it has a character in common with another part."""
        return self.start < end and start < self.end

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"


def without_disliked(text: str, spans: Sequence[MarkedSpan]) -> str:
    """The text without the sentences that disliked spans touch.

    Where a sentence has a liked span too, only the disliked span itself goes.
    """
    liked = [span for span in spans if span.liked]
    sentences = _sentences(text)
    gone = bytearray(len(text))
    for span in spans:
        if span.liked:
            continue
        start = max((at for at, _ in sentences if at <= span.start), default=0)
        end = min((to for _, to in sentences if to >= span.end), default=len(text))
        if any(one.touches(start, end) for one in liked):
            start, end = span.start, span.end
        gone[start:end] = b"\x01" * len(gone[start:end])
    for span in liked:
        gone[span.start : span.end] = bytes(len(gone[span.start : span.end]))
    return "".join(compress(text, (not taken for taken in gone))).strip()


def liked_parts(text: str, spans: Sequence[MarkedSpan]) -> str:
    """The liked spans as quoted lines; empty without any."""
    parts = (" ".join(text[span.start : span.end].split()) for span in spans if span.liked)
    return "\n".join(f"> {part}" for part in parts if part)


def _sentences(text: str) -> list[tuple[int, int]]:
    """Start and end of each sentence or line, with the white space behind it."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    starts = [0, *ends]
    return [
        (start, end) for start, end in zip(starts, [*ends, len(text)], strict=True) if end > start
    ]
