"""A preference pair or a labelled answer, between the forms, and what all forms check."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from shared.contracts.conversation import openai_turn, read_json, stored_tools, stored_turn
from shared.contracts.events.base import Message, Tool

Row = Mapping[str, Any]
ROLES = ("system", "user", "assistant", "tool")
TURN_FIELDS = ("role", "content", "tool_calls", "tool_call_id", "name")
"""What is taken of a turn with tools."""


class BadPair(ValueError):
    """A row is not of its form, or a form cannot hold it."""


@dataclass(frozen=True, slots=True)
class PairRow:
    """Two answers to one conversation, the better one first."""

    messages: tuple[Message, ...]
    chosen: Message
    rejected: Message
    tools: tuple[Tool, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def turns(self) -> tuple[Message, ...]:
        """All turns."""
        return (*self.messages, self.chosen, self.rejected)


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One answer to a conversation, good (`label` true) or bad."""

    messages: tuple[Message, ...]
    answer: Message
    label: bool
    tools: tuple[Tool, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def turns(self) -> tuple[Message, ...]:
        """All turns."""
        return (*self.messages, self.answer)


@dataclass(frozen=True, slots=True)
class PairFormat:
    """A form by its name: how its rows are recognised, read and written."""

    name: str
    about: str
    matches: Callable[[Row], bool]
    parse: Callable[[Row], PairRow | AnswerRow]
    render: Callable[[PairRow], dict[str, Any]]
    render_answer: Callable[[AnswerRow], dict[str, Any]] | None = None
    """None: the form has pairs alone."""
    tools: bool = False
    """Whether the form holds tools and their calls."""

    def read(self, row: Row) -> PairRow | AnswerRow:
        """A row of the form.

        Raises:
            BadPair: it is not of the form; names the field.

        """
        found = self.parse(row)
        self._require_room(found)
        return found

    def write(self, row: PairRow | AnswerRow) -> dict[str, Any]:
        """The row in the form.

        Raises:
            BadPair: the form cannot hold it; names what.

        """
        self._require_room(row)
        if isinstance(row, PairRow):
            return self.render(row)
        if self.render_answer is None:
            raise BadPair(f"label: {self.name} has pairs alone, no single answers")
        return self.render_answer(row)

    def _require_room(self, row: PairRow | AnswerRow) -> None:
        if self.tools:
            return
        if row.tools or not all(turn.is_text and turn.role != "tool" for turn in row.turns):
            raise BadPair(f"tools: {self.name} has turns of text alone")


def text(row: Row, name: str) -> str:
    """A field that must be a text.

    Raises:
        BadPair: it is none, or says nothing.

    """
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise BadPair(f"{name}: must be a text that says something")
    return value


def turns(value: object, name: str) -> tuple[Message, ...]:
    """A list of turns as OpenAI writes them.

    Raises:
        BadPair: it is none, or a turn is neither text nor calls of tools.

    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise BadPair(f"{name}: must be a list of turns")
    return tuple(_turn(one, name) for one in value)


def _turn(value: object, name: str) -> Message:
    if not isinstance(value, Mapping):
        raise BadPair(f"{name}: each turn must be an object")
    role = value.get("role")
    if role not in ROLES:
        raise BadPair(f"{name}: role must be one of {', '.join(ROLES)}, not {role!r}")
    if role == "tool" or value.get("tool_calls"):
        return _turn_with_tools(value, name)
    return said(role, text(value, "content"))


def _turn_with_tools(value: Row, name: str) -> Message:
    if not isinstance(value.get("content"), str | None):
        raise BadPair(f"{name}: content must be a text")
    calls = objects(value.get("tool_calls") or [], f"{name}.tool_calls")
    if not all(isinstance(one.get("function", one), dict) for one in calls):
        raise BadPair(f"{name}: a call must have its function's name and arguments")
    given = {one: value[one] for one in TURN_FIELDS if value.get(one) is not None}
    try:
        turn = Message.model_validate(stored_turn(given))
    except ValidationError as error:
        raise BadPair(f"{name}: {error.errors(include_url=False)[0]['msg']}") from None
    if not all(call.name for call in turn.tool_calls):
        raise BadPair(f"{name}: a call must have its function's name and arguments")
    return turn


def said(role: str, content: str) -> Message:
    """A turn of text.

    Raises:
        BadPair: it is too long.

    """
    try:
        return Message(role=role, content=content)
    except ValidationError as error:
        raise BadPair(f"content: {error.errors(include_url=False)[0]['msg']}") from None


def asked(value: object, name: str) -> tuple[Message, ...]:
    """A prompt: a text, or a list of turns.

    Raises:
        BadPair: it is neither.

    """
    if isinstance(value, str):
        return (said("user", text({name: value}, name)),)
    return turns(value, name)


def answer(value: object, name: str) -> Message:
    """One assistant turn: a text, or a turn alone or in a list.

    Raises:
        BadPair: it is none.

    """
    if isinstance(value, str):
        return said("assistant", text({name: value}, name))
    (turn, *more) = turns([value] if isinstance(value, Mapping) else value, name)
    if more or turn.role != "assistant":
        raise BadPair(f"{name}: must be one turn of the assistant")
    return turn


def is_label(value: object) -> bool:
    """Whether a field says that an answer is good or bad."""
    return isinstance(value, bool)


def tools_of(value: object, name: str = "tools") -> tuple[Tool, ...]:
    """Definitions of tools, as a list or as its JSON; none where there is no such field.

    Raises:
        BadPair: they are neither, or one has no name.

    """
    try:
        given = read_json(value) if isinstance(value, str) and value else value or []
    except ValueError as error:
        raise BadPair(f"{name}: {error}") from None
    listed = objects(given, name)
    try:
        found = tuple(Tool.model_validate(one) for one in stored_tools(listed))
    except ValidationError as error:
        raise BadPair(f"{name}: {error.errors(include_url=False)[0]['msg']}") from None
    if len(found) != len(listed):
        raise BadPair(f"{name}: a definition must have a name")
    return found


def openai_turns(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Turns as OpenAI writes them."""
    return [openai_turn(turn) for turn in messages]


def meta_of(row: Row) -> dict[str, str]:
    """What a row says of itself in `meta`."""
    meta = row.get("meta")
    return {str(k): str(v) for k, v in meta.items()} if isinstance(meta, dict) else {}


def preferred(votes: Sequence[object], sides: tuple[str, str], name: str) -> tuple[str, str]:
    """The side that most raters chose, and the other one.

    Raises:
        BadPair: nobody chose, or as many chose either.

    """
    first, second = (sum(vote == side for vote in votes) for side in sides)
    if first == second:
        raise BadPair(f"{name}: no majority for {sides[0]} or {sides[1]}; a tie makes no pair")
    return sides if first > second else (sides[1], sides[0])


def placed(pair: PairRow, sides: tuple[str, str]) -> tuple[str, str]:
    """The sides that the better and the worse answer are written on.

    Which is which follows from the text, so that neither side wins always.
    """
    even = zlib.crc32(pair.chosen.content.encode()) % 2 == 0
    return sides if even else (sides[1], sides[0])


def objects(value: object, name: str) -> list[dict[str, Any]]:
    """A field's list of objects.

    Raises:
        BadPair: it is none; names the field.

    """
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise BadPair(f"{name}: must be a list of objects")
    return value
