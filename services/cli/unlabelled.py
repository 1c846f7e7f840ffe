"""JSONL of prompts, of answers to compare, and of people's votes, as labelling reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from services.cli.errors import CliError, Exit
from services.cli.pair_formats.pair import BadPair, meta_of, text
from services.cli.row_files import messages_of, read_rows
from shared.ai_judge import UnlabelledPair
from shared.contracts.row_sources import MACHINE_MADE


def read_unlabelled(path: Path) -> list[UnlabelledPair]:
    """Answers to compare: `answers` in twos, or `chosen` and `rejected` without their order.

    Raises:
        CliError: the file cannot be read, or a row is not of the form; names line and field.

    """
    return [pair for pairs in read_rows(path, _unlabelled) for pair in pairs]


def read_votes(path: Path) -> list[UnlabelledPair]:
    """People's votes, the chosen answer first; rows that a machine made are passed over.

    Raises:
        CliError: as `read_unlabelled`, or no row is a person's.

    """
    found = [one for one in read_rows(path, _vote) if one is not None]
    if not found:
        raise CliError(f"{path}: no row is a vote of a person", Exit.usage)
    return found


def read_prompts(path: Path) -> list[UnlabelledPair]:
    """Prompts to answer, without answers; other fields of a row but `meta` are ignored.

    Raises:
        CliError: as `read_unlabelled`.

    """
    return read_rows(path, lambda row: UnlabelledPair(messages_of(row), ("", ""), meta_of(row)))


def _unlabelled(row: dict[str, Any]) -> list[UnlabelledPair]:
    messages, meta = messages_of(row), meta_of(row)
    if "answers" not in row:
        return [UnlabelledPair(messages, (text(row, "chosen"), text(row, "rejected")), meta)]
    given = row["answers"]
    if not isinstance(given, list) or len(given) < 2 or not all(isinstance(a, str) for a in given):
        raise BadPair("answers: must be a list of two texts or more")
    return [
        UnlabelledPair(messages, (one, other), meta)
        for one, other in zip(given[::2], given[1::2], strict=False)
    ]


def _vote(row: dict[str, Any]) -> UnlabelledPair | None:
    meta = meta_of(row)
    if meta.get("source") in MACHINE_MADE:
        return None
    return UnlabelledPair(messages_of(row), (text(row, "chosen"), text(row, "rejected")), meta)
