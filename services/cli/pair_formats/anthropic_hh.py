"""Anthropic's HH text: a whole dialogue as one text, each turn after an empty line and its speaker."""

from __future__ import annotations

import re
from typing import Any

from services.cli.pair_formats.pair import BadPair, PairFormat, PairRow, Row, said, text
from shared.contracts.events.base import Message

_MARKS = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
_SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")


def _read(row: Row) -> PairRow:
    *prompt, chosen = _dialogue(text(row, "chosen"), "chosen")
    *other, rejected = _dialogue(text(row, "rejected"), "rejected")
    if not prompt or prompt != other:
        raise BadPair("chosen, rejected: must have the same turns but for the last one")
    if {chosen.role, rejected.role} != {"assistant"}:
        raise BadPair("chosen, rejected: must end with the assistant's turn")
    return PairRow(tuple(prompt), chosen, rejected)


def _dialogue(whole: str, name: str) -> list[Message]:
    before, *parts = _SPEAKER.split(whole)
    if before.strip() or not parts:
        raise BadPair(f"{name}: must begin with an empty line and Human:")
    roles = {"Human": "user", "Assistant": "assistant"}
    found = [
        said(roles[speaker], words.strip())
        for speaker, words in zip(parts[::2], parts[1::2], strict=True)
    ]
    if not all(turn.content for turn in found):
        raise BadPair(f"{name}: a turn says nothing")
    return found


def _write(pair: PairRow) -> dict[str, Any]:
    if any(turn.role == "system" for turn in pair.messages):
        raise BadPair("messages: the form has no system turn")
    if any(_SPEAKER.search(turn.content) for turn in pair.turns):
        raise BadPair("messages: a turn has the form's own mark of a speaker in it")
    return {
        side: "".join(_MARKS[turn.role] + turn.content for turn in (*pair.messages, last))
        for side, last in (("chosen", pair.chosen), ("rejected", pair.rejected))
    }


ANTHROPIC_HH = PairFormat(
    "anthropic-hh",
    "Anthropic HH: chosen and rejected as one text each",
    lambda row: str(row.get("chosen", "")).startswith("\n\nHuman:") and "messages" not in row,
    _read,
    _write,
)
