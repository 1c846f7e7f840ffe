"""Base of all events: identifiers, texts, chat turns, context and the event itself.

Readers ignore fields they do not know and every field added later has a default, so old readers
read new events and new readers read old ones (FULL_TRANSITIVE). Times are UTC, durations are
milliseconds, scores are in [0, 1], weights are basis points 0-10000.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from functools import cache
from operator import not_
from typing import Annotated, Any, ClassVar, Self, TypeVar

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shared.contracts.names import check_model_name, check_name, check_optional_name
from shared.withheld import UNCHECKED

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

M = TypeVar("M", bound=BaseModel)


class Event(BaseModel):
    """A value on a topic. `ce_type` is its CloudEvents type."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_enum_values=False)
    ce_type: ClassVar[str]

    @classmethod
    def unvalidated(cls, fields: dict[str, Any]) -> Self:
        """An event of fields that are known to be valid, and the defaults of those left out.

        It takes a quarter of the time of validation; model_construct takes longer than that.
        """
        return unvalidated(cls, fields)

    def to_json(self) -> bytes:
        """The value as it travels: compact JSON in UTF-8."""
        # model_dump_json is this and three copies of it: bytes to text, and back again.
        return self.__pydantic_serializer__.to_json(self)


def unvalidated(model: type[M], fields: dict[str, Any]) -> M:
    """See Event.unvalidated."""
    made = model.__new__(model)
    object.__setattr__(made, "__dict__", {**_defaults_of(model), **fields})
    object.__setattr__(made, "__pydantic_fields_set__", set(fields))
    object.__setattr__(made, "__pydantic_extra__", None)
    object.__setattr__(made, "__pydantic_private__", None)
    return made


@cache
def _defaults_of(model: type[BaseModel]) -> dict[str, Any]:
    """The model's fields in its order, which their JSON has too."""
    return {name: field.get_default() for name, field in model.model_fields.items()}


def unless_empty(default: Any, **rules: Any) -> Any:
    """A field that is written only where it says something, so that text turns stay small."""
    return Field(default=default, exclude_if=not_, **rules)


class EncryptedTexts(BaseModel):
    """The texts of an event whose people have keys (shared/text_encryption.py)."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    keys: tuple[Identifier, ...] = Field(description="ids on user-keys.v1; all are needed")
    data: str = Field(
        description="base64 of nonce and AES-256-GCM ciphertext of JSON, long ones as zlib"
    )


class PersonalEvent(Event):
    """An event with people's texts, which may be encrypted under these people's keys."""

    encrypted: EncryptedTexts | None = unless_empty(
        None, description="texts of the event, which are then empty where they stand"
    )


class ToolCall(BaseModel):
    """One call of a tool, as the model wrote it."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    id: str = unless_empty("", max_length=MAX_ID)
    name: str = Field(max_length=MAX_ID)
    arguments: Text = Field(
        default="{}",
        description="JSON object without white space, its keys as they were written; see unparsed",
    )
    unparsed: bool = unless_empty(
        default=False, description="arguments are no JSON object; they are the model's own text"
    )


class ContentPart(BaseModel):
    """One part of a turn that is not text alone. Media are kept as a digest, never as bytes."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    type: str = Field(max_length=16, description="text, image, audio, video, file or other")
    text: Text = unless_empty("")
    sha256: str = unless_empty("", max_length=64, description="of the bytes; see reference")
    size: int = unless_empty(0, ge=0, description="bytes; 0: unknown")
    media_type: str = unless_empty("", max_length=MAX_ID)
    reference: bool = unless_empty(
        default=False, description="sha256 is of the address or file id: the bytes were not seen"
    )


class Message(BaseModel):
    """One chat turn as stored: its text, and beside it what is more than text."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    role: str = Field(max_length=32)
    content: Text
    name: str = unless_empty("", max_length=MAX_ID)
    tool_calls: tuple[ToolCall, ...] = unless_empty(())
    tool_call_id: str = unless_empty("", max_length=MAX_ID)
    reasoning: Text = unless_empty("", description="what the model thought; no part of content")
    refusal: Text = unless_empty("")
    parts: tuple[ContentPart, ...] = unless_empty(
        (),
        description="in their order, where one is no text; content then has [image] in its place",
    )

    @property
    def is_text(self) -> bool:
        """Whether role and content say all there is."""
        return not (
            self.tool_calls
            or self.parts
            or self.reasoning
            or self.refusal
            or self.tool_call_id
            or self.name
        )

    @property
    def withheld(self) -> bool:
        """Whether a text of the turn was withheld: the detector of personal data could not check it."""
        return (
            UNCHECKED in (self.content, self.name, self.reasoning, self.refusal)
            or any(UNCHECKED in call.arguments for call in self.tool_calls)
            or any(part.text == UNCHECKED for part in self.parts)
        )


class Tool(BaseModel):
    """Definition of a tool that the model could call."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    name: str = Field(max_length=MAX_ID)
    description: Text = unless_empty("")
    parameters: Text = Field(
        default="{}", description="JSON Schema of the arguments, without white space"
    )

    @property
    def withheld(self) -> bool:
        """Whether a text of the definition was withheld."""
        return self.description == UNCHECKED or UNCHECKED in self.parameters


class Untrainable(StrEnum):
    """Why an interaction is kept out of training, whatever its feedback."""

    several_choices = "several_choices"
    """One of several answers was stored, and which one a person saw is unknown."""
    several_prompts = "several_prompts"
    token_ids = "token_ids"  # noqa: S105 no secret
    """The prompt came as token ids."""
    echo = "echo"
    """The answer repeats the prompt."""
    media = "media"
    """A turn has an image, audio or a file, and training is on text."""
    continued = "continued"
    """The answer goes on in the middle of a turn that the client began."""
    other_items = "other_items"
    """The Responses API's input has items that no turn holds, such as calls of hosted tools."""
    too_large = "too_large"
    """The conversation is longer than what is stored."""
    version_tools = "version_tools"
    """The answer calls tools that the version's settings gave the model, and not the client."""
    passed_through = "passed_through"
    """Embeddings and the Messages API, which are judged on operations only."""
    filtered = "filtered"
    """The client saw the answer masked or not at all."""
    unchecked = "unchecked"
    """A text was withheld, as the detector of personal data could not check it."""
    holdout = "holdout"
    """The user is held out, so that what was learned can be measured against them."""


UntrainableReasons = Annotated[
    tuple[Annotated[str, Field(max_length=32)], ...],
    Field(max_length=16, description="values of Untrainable; readers take others as they come"),
]
"""Texts in the schema, as an enumeration could never gain a value."""

AnswerTurn = Annotated[
    Message | None,
    Field(description="the answer as a turn; absent where it is text alone"),
]


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


def answer_turn(turn: Message | None, text: str) -> Message:
    """An answer as a turn, whichever way it is stored."""
    return turn or Message(role="assistant", content=text)


_ENDED = frozenset({"", "stop", "tool_calls", "function_call"})


def was_cut(finish_reason: str) -> bool:
    """Whether a finish_reason means truncated generation; an empty one means unknown: False."""
    return finish_reason not in _ENDED


def utc(moment: datetime) -> str:
    """ISO 8601 in UTC with a Z, as every event and header writes it."""
    return orjson.dumps(moment, option=orjson.OPT_UTC_Z)[1:-1].decode()
