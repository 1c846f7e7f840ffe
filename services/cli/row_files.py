"""JSONL files of rows with turns and `meta`, read whole and checked line by line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import orjson

from services.cli.errors import CliError, Exit
from services.cli.pair_formats.pair import BadPair, turns

MAX_ROWS = 100_000

T = TypeVar("T")


def read_rows(path: Path, parse: Callable[[dict[str, Any]], T]) -> list[T]:
    """Each row, parsed; empty lines are passed over.

    Args:
        path: The file.
        parse: Makes something of a row; raises `BadPair` where it cannot.

    Raises:
        CliError: the file cannot be read, has no rows or too many, or one is bad, by its line.

    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise CliError(f"{path}: {error.strerror or error}", Exit.usage) from None
    found: list[T] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
            if not isinstance(row, dict):
                raise BadPair("not an object")
            found.append(parse(row))
        except (orjson.JSONDecodeError, BadPair) as error:
            raise CliError(f"{path}: line {number}: {error}", Exit.usage) from None
    if not 0 < len(found) <= MAX_ROWS:
        raise CliError(f"{path}: {len(found)} rows; give 1 to {MAX_ROWS}", Exit.usage)
    return found


def messages_of(row: dict[str, Any]) -> tuple[dict[str, str], ...]:
    """A row's prompt: `messages`, or `prompt` as turns or as a text.

    Raises:
        BadPair: there is none of text alone.

    """
    prompt = row.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        return ({"role": "user", "content": prompt},)
    found = turns(row.get("messages", prompt), "messages")
    if not all(turn.is_text and turn.role != "tool" for turn in found):
        raise BadPair("messages: each turn must be an object of text alone")
    return tuple({"role": turn.role, "content": turn.content} for turn in found)
