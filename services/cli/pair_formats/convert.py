"""Conversion of JSONL between forms, line by line: the good rows, and why the others are not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import orjson

from services.cli.pair_formats.anthropic_hh import ANTHROPIC_HH
from services.cli.pair_formats.argilla import ARGILLA
from services.cli.pair_formats.label_studio import LABEL_STUDIO
from services.cli.pair_formats.llama_factory import LLAMA_FACTORY
from services.cli.pair_formats.lmarena import LMARENA
from services.cli.pair_formats.openai_dpo import OPENAI_DPO
from services.cli.pair_formats.pair import BadPair, PairFormat, Row
from services.cli.pair_formats.ratchet import RATCHET
from services.cli.pair_formats.trl import TRL
from services.cli.pair_formats.ultrafeedback import ULTRAFEEDBACK

FORMATS = {
    one.name: one
    for one in (
        RATCHET,
        TRL,
        ANTHROPIC_HH,
        OPENAI_DPO,
        LLAMA_FACTORY,
        ULTRAFEEDBACK,
        LMARENA,
        ARGILLA,
        LABEL_STUDIO,
    )
}


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that was left out."""

    line: int
    reason: str


class Form(Protocol):
    """A form of rows, by what its rows look like."""

    @property
    def matches(self) -> Callable[[Row], bool]:
        """Says whether a row is of the form."""
        ...


F = TypeVar("F", bound=Form)
MAX_NAMED_FIELDS = 8


def form_among(forms: Mapping[str, F], line: bytes) -> F:
    """The one of the forms that a file's first row has.

    Raises:
        BadPair: no form has such rows, or several do.

    """
    row = json_object(line)
    found = [one for one in forms.values() if one.matches(row)]
    if len(found) != 1:
        fields = ", ".join(sorted(row)[:MAX_NAMED_FIELDS])
        raise BadPair(
            f"the first row ({fields}) is of no known form; its fields must be those of one of "
            f"{', '.join(forms)}, as docs/training.md and docs/feedback.md have them"
        )
    return found[0]


def detected(line: bytes) -> PairFormat:
    """The form of a file of pairs; as `form_among`."""
    return form_among(FORMATS, line)


def converted(
    lines: Iterable[bytes], source: PairFormat, target: PairFormat
) -> Iterator[bytes | BadLine]:
    """Each line in the other form, or why it is left out; empty lines are passed over."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            written = json_line(target.write(source.read(json_object(line))))
        except BadPair as error:
            yield BadLine(number, str(error))
        else:
            yield written


def json_line(row: Mapping[str, object]) -> bytes:
    """A row as its line of JSON.

    Raises:
        BadPair: a number in it has more than 64 bits.

    """
    try:
        return orjson.dumps(row) + b"\n"
    except TypeError as error:
        raise BadPair(f"not writable as JSON ({error}); write such a number as a text") from None


def json_object(line: bytes) -> dict[str, object]:
    """A line's JSON object.

    Raises:
        BadPair: it is none.

    """
    try:
        row = orjson.loads(line)
    except json.JSONDecodeError as error:
        raise BadPair(f"not JSON ({error.msg})") from None
    if not isinstance(row, dict):
        raise BadPair("not an object")
    return row
