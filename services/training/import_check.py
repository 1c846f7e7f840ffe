"""Check of an import by the detector of personal data, before anything is made of its rows."""

# pyright: strict
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from tempfile import TemporaryFile
from typing import BinaryIO, cast

import orjson

from services.training.errors import BadDataset
from services.training.importing import ImportedRows, from_beginning, redacted_row
from shared.redaction.detection import Redact, Redaction, primed
from shared.withheld import UNCHECKED

TOO_DEEP = b'"nested too deep"\n'
ROWS = 256
"""Rows about which the detector is asked at once."""


async def checked_import(
    imported: ImportedRows, redact: Redact, alive: Callable[[], None] = lambda: None
) -> ImportedRows:
    """An import whose texts a detector was asked about; without a detector, as it is.

    Args:
        imported: Its lines are read once; closed where they are refused.
        redact: Rules, or rules and detector.
        alive: Called as it goes on.

    Raises:
        BadDataset: the detector could not check a row, by its line's number.

    """
    if not isinstance(redact, Redaction) or redact.detector is None:
        return imported
    checked = cast("BinaryIO", TemporaryFile())  # noqa: SIM115 read as long as the import is
    try:
        await _check(imported, redact, checked, alive)
    except BaseException:
        checked.close()
        imported.close()
        raise
    return replace(imported, checked=checked)


async def _check(
    imported: ImportedRows, redact: Redaction, checked: BinaryIO, alive: Callable[[], None]
) -> None:
    lines = iter(from_beginning(imported.file))
    number = 0
    while part := list(islice(lines, ROWS)):
        builds = [partial(_checked, line) for line in part]
        review = await primed(redact, builds)
        for build in builds:
            number += 1
            line = build(review)
            if UNCHECKED.encode() in line:
                raise BadDataset(
                    f"dataset: line {number}: the detector of personal data could not check it; "
                    "try again once RATCHET_DETECTOR_URL answers (ratchet doctor)"
                )
            checked.write(line)
        alive()


def _checked(line: bytes, redact: Redact) -> bytes:
    """A line with its texts redacted; what is no JSON stays, as it is refused by and by.

    So is what is nested too deep to be written again, of which nothing is kept.
    """
    try:
        return orjson.dumps(redacted_row(orjson.loads(line), redact)) + b"\n"
    except orjson.JSONDecodeError:
        return line
    except (orjson.JSONEncodeError, RecursionError):
        return TOO_DEEP
