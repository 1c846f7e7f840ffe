"""Base of all events: identifiers, texts, chat turns, context and the event itself.

Readers ignore fields they do not know and every field added later has a default, so old readers
read new events and new readers read old ones (FULL_TRANSITIVE). Times are UTC, durations are
milliseconds, scores are in [0, 1], weights are basis points 0-10000.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shared.contracts.names import check_model_name, check_name, check_optional_name

MAX_TEXT = 100_000
"""Longest prompt, completion or correction in characters."""

MAX_ID = 200
"""Longest identifier in characters."""

WEIGHT_SCALE = 10_000
"""Basis points of full traffic."""

Identifier = Annotated[str, Field(min_length=1, max_length=MAX_ID, pattern=r"^[^\x00-\x1f\x7f]+$")]

OptionalIdentifier = Annotated[str, Field(max_length=MAX_ID, pattern=r"^[^\x00-\x1f\x7f]*$")]

Name = Annotated[Identifier, AfterValidator(check_name)]
"""A version or dataset: it becomes a path, a URL and a LoRA's name."""

OptionalName = Annotated[OptionalIdentifier, AfterValidator(check_optional_name)]

ModelName = Annotated[Identifier, AfterValidator(check_model_name)]
"""What clients ask for: it becomes a path, a URL and a Redis key."""

Text = Annotated[str, Field(max_length=MAX_TEXT)]

Cut = Annotated[
    bool,
    Field(description="generation was truncated; its end-of-turn token must not be learned"),
]


class Event(BaseModel):
    """A value on a topic. `ce_type` is its CloudEvents type."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_enum_values=False)
    ce_type: ClassVar[str]

    def to_json(self) -> bytes:
        """The value as it travels: compact JSON in UTF-8."""
        return self.model_dump_json().encode()


class Message(BaseModel):
    """One chat turn, text only as stored."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    role: str = Field(max_length=32)
    content: Text


class Context(BaseModel):
    """Origin of a request or feedback; every field may be empty."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    session_id: OptionalIdentifier = ""
    locale: OptionalIdentifier = ""
    segment: OptionalIdentifier = ""
    category: OptionalIdentifier = ""
    labels: dict[str, str] = Field(default_factory=dict, max_length=32)


def prompt_text(messages: tuple[Message, ...]) -> str:
    """A conversation as one text: a lone user turn as it is, else `role: content` lines."""
    if len(messages) == 1:
        return messages[0].content
    return "\n".join(f"{turn.role}: {turn.content}" for turn in messages)


_ENDED = frozenset({"", "stop", "tool_calls", "function_call"})


def was_cut(finish_reason: str) -> bool:
    """Whether a finish_reason means truncated generation; an empty one means unknown: False."""
    return finish_reason not in _ENDED


def utc(moment: datetime) -> str:
    """ISO 8601 in UTC with a Z, as every event and header writes it."""
    return moment.isoformat().replace("+00:00", "Z")
