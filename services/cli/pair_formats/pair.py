"""A preference pair of texts, between the forms, and what all forms check."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
ROLES = ("system", "user", "assistant")


class BadPair(ValueError):
    """A row is not of its form, or a form cannot hold a pair."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of text."""

    role: str
    content: str

    def as_openai(self) -> dict[str, str]:
        """The turn as OpenAI writes it."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class TextPair:
    """Two answers to one conversation, the better one first."""

    messages: tuple[Turn, ...]
    chosen: str
    rejected: str
    meta: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class PairFormat:
    """A form by its name: how its rows are recognised, read and written."""

    name: str
    about: str
    matches: Callable[[Row], bool]
    read: Callable[[Row], TextPair]
    write: Callable[[TextPair], dict[str, Any]]


def text(row: Row, name: str) -> str:
    """A field that must be a text.

    Raises:
        BadPair: it is none, or says nothing.

    """
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise BadPair(f"{name}: must be a text that says something")
    return value


def turns(
    value: object, name: str, role: str = "role", content: str = "content"
) -> tuple[Turn, ...]:
    """A list of turns of text.

    Raises:
        BadPair: it is none, or a turn is more than text.

    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise BadPair(f"{name}: must be a list of turns")
    found: list[Turn] = []
    for one in value:
        if not isinstance(one, Mapping) or one.get("tool_calls"):
            raise BadPair(f"{name}: each turn must be an object of text alone")
        speaker = one.get(role)
        if speaker not in ROLES:
            raise BadPair(f"{name}: role must be one of {', '.join(ROLES)}, not {speaker!r}")
        found.append(Turn(str(speaker), text(one, content)))
    return tuple(found)


def answer(value: object, name: str) -> str:
    """The text of one assistant turn, alone or in a list.

    Raises:
        BadPair: it is none.

    """
    (turn, *more) = turns([value] if isinstance(value, Mapping) else value, name)
    if more or turn.role != "assistant":
        raise BadPair(f"{name}: must be one turn of the assistant")
    return turn.content


def preferred(votes: Sequence[object], sides: tuple[str, str], name: str) -> tuple[str, str]:
    """The side that most raters chose, and the other one.

    Raises:
        BadPair: nobody chose, or as many chose either.

    """
    first, second = (sum(vote == side for vote in votes) for side in sides)
    if first == second:
        raise BadPair(f"{name}: no majority for {sides[0]} or {sides[1]}; a tie makes no pair")
    return sides if first > second else (sides[1], sides[0])


def placed(pair: TextPair, sides: tuple[str, str]) -> tuple[str, str]:
    """The sides that the better and the worse answer are written on.

    Which is which follows from the text, so that neither side wins always.
    """
    return sides if zlib.crc32(pair.chosen.encode()) % 2 == 0 else (sides[1], sides[0])


def objects(value: object, name: str) -> list[dict[str, Any]]:
    """A field's list of objects.

    Raises:
        BadPair: it is none; names the field.

    """
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise BadPair(f"{name}: must be a list of objects")
    return value
