"""Conversations in bodies: OpenAI's turns and tools in their stored form, or refused. Pure."""

from __future__ import annotations

from typing import Any, cast

from shared.contracts.conversation import has_media, stored_tools, stored_turn

_PLAIN = ("role", "content")
"""Fields of a turn that is text alone."""


def turns_as_stored(turns: Any) -> Any:
    """Turns in the stored form; what has neither form is left to the checks.

    Raises:
        ValueError: a turn has a picture, audio or file, of which only a digest would be asked.

    """
    if not isinstance(turns, list):
        return turns
    stored = [_stored(turn) for turn in cast("list[Any]", turns)]
    if has_media(cast("dict[str, Any]", turn) for turn in stored if isinstance(turn, dict)):
        raise ValueError("pictures, audio and files cannot be compared")
    return stored


def tools_as_stored(tools: Any) -> Any:
    """Definitions of tools in the stored form; what is no list is left to the checks.

    Raises:
        ValueError: one of them is no definition.

    """
    if not isinstance(tools, list):
        return tools
    given = cast("list[Any]", tools)
    stored = stored_tools(given)
    if len(stored) < len(given):
        raise ValueError("each has the form of OpenAI's chat endpoint, with a name")
    return stored


def _stored(turn: Any) -> Any:
    if not isinstance(turn, dict):
        return turn
    given = cast("dict[str, Any]", turn)
    more = given.keys() - _PLAIN or isinstance(given.get("content"), list)
    return stored_turn(given) if more and isinstance(given.get("role"), str) else given
