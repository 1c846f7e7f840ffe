"""Ratchet's own rows, as datasets hold them and `ratchet train --dataset` reads them."""

from __future__ import annotations

from typing import Any

from services.cli.pair_formats.pair import (
    AnswerRow,
    BadPair,
    PairFormat,
    PairRow,
    Row,
    answer,
    is_label,
    meta_of,
    openai_turns,
    tools_of,
    turns,
)
from shared.contracts.conversation import answer_text, compact_json, openai_tools, openai_turn
from shared.contracts.events.base import Message


def _read(row: Row) -> PairRow | AnswerRow:
    prompt, tools, meta = (
        turns(row.get("messages"), "messages"),
        tools_of(row.get("tools")),
        meta_of(row),
    )
    if "label" not in row:
        return PairRow(prompt, _answer(row, "chosen"), _answer(row, "rejected"), tools, meta)
    if not is_label(row["label"]):
        raise BadPair("label: must be true for a good answer or false for a bad one")
    said = _answer(row, "completion" if "completion" in row else "answer")
    return AnswerRow(prompt, said, row["label"], tools, meta)


def _answer(row: Row, side: str) -> Message:
    """An answer; one that is more than text is a turn beside its text."""
    return answer(row.get(f"{side}_turn", row.get(side)), side)


def _write(pair: PairRow) -> dict[str, Any]:
    sides = _written("chosen", pair.chosen) | _written("rejected", pair.rejected)
    return _with_prompt(pair, sides)


def _write_answer(row: AnswerRow) -> dict[str, Any]:
    return _with_prompt(row, {**_written("completion", row.answer), "label": row.label})


def _with_prompt(row: PairRow | AnswerRow, fields: dict[str, Any]) -> dict[str, Any]:
    written: dict[str, Any] = {"messages": openai_turns(row.messages), **fields}
    if row.tools:
        written["tools"] = compact_json(openai_tools(row.tools))
    return written | ({"meta": dict(row.meta)} if row.meta else {})


def _written(side: str, turn: Message) -> dict[str, Any]:
    if turn.is_text:
        return {side: turn.content}
    return {side: answer_text(turn.model_dump()), f"{side}_turn": openai_turn(turn)}


RATCHET = PairFormat(
    "ratchet",
    "messages with chosen and rejected, or with completion and label; tools, meta",
    lambda row: (
        "messages" in row and (isinstance(row.get("chosen"), str) or is_label(row.get("label")))
    ),
    _read,
    _write,
    _write_answer,
    tools=True,
)
