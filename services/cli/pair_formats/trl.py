"""TRL's rows: preference pairs, prompt explicit (written, read) or implicit (read), and single answers
(`completion` and `label`); with `tools`. Texts in place of turns are read as a question and its answers.
"""

from __future__ import annotations

from typing import Any

from services.cli.pair_formats.pair import (
    AnswerRow,
    BadPair,
    PairFormat,
    PairRow,
    Row,
    answer,
    asked,
    is_label,
    tools_of,
    turns,
)
from shared.contracts.conversation import compact_json, openai_tools, openai_turn, template_turn
from shared.contracts.events.base import Message


def _read(row: Row) -> PairRow | AnswerRow:
    tools = tools_of(row.get("tools"))
    if "completion" in row:
        if not is_label(row.get("label")):
            raise BadPair("label: must be true for a good answer or false for a bad one")
        said = answer(row["completion"], "completion")
        return AnswerRow(asked(row.get("prompt"), "prompt"), said, row["label"], tools)
    if "prompt" not in row:
        return shared_prompt(row)
    if _is_plain(row):
        row = {
            **row,
            "prompt": [{"role": "user", "content": row["prompt"]}],
            **{
                name: [{"role": "assistant", "content": row[name]}]
                for name in ("chosen", "rejected")
            },
        }
    return PairRow(
        turns(row["prompt"], "prompt"),
        answer(row.get("chosen"), "chosen"),
        answer(row.get("rejected"), "rejected"),
        tools,
    )


def shared_prompt(row: Row) -> PairRow:
    """A pair of whole conversations that differ in their last turn.

    Raises:
        BadPair: they differ before it.

    """
    *prompt, chosen = turns(row.get("chosen"), "chosen")
    *other, rejected = turns(row.get("rejected"), "rejected")
    if not prompt or prompt != other:
        raise BadPair("chosen, rejected: must have the same turns but for the last one")
    if {chosen.role, rejected.role} != {"assistant"}:
        raise BadPair("chosen, rejected: must end with the assistant's turn")
    return PairRow(tuple(prompt), chosen, rejected, tools_of(row.get("tools")))


def _write(pair: PairRow) -> dict[str, Any]:
    return _with_prompt(pair, chosen=_turns(pair.chosen), rejected=_turns(pair.rejected))


def _write_answer(row: AnswerRow) -> dict[str, Any]:
    return _with_prompt(row, completion=_turns(row.answer), label=row.label)


def _with_prompt(row: PairRow | AnswerRow, **fields: object) -> dict[str, Any]:
    tools = {"tools": compact_json(openai_tools(row.tools))} if row.tools else {}
    return {"prompt": _turns(*row.messages), **fields, **tools}


def _turns(*messages: Message) -> list[dict[str, Any]]:
    """Turns with parsed arguments, as chat templates render them."""
    return [template_turn(openai_turn(turn)) for turn in messages]


def _matches(row: Row) -> bool:
    if "completion" in row:
        return "prompt" in row and is_label(row.get("label"))
    if _is_plain(row):
        return True
    return isinstance(row.get("chosen"), list) and not isinstance(row.get("prompt"), str)


def _is_plain(row: Row) -> bool:
    """A row of three texts, as TRL's standard format has them."""
    return all(isinstance(row.get(name), str) for name in ("prompt", "chosen", "rejected"))


TRL = PairFormat(
    "trl",
    "TRL: prompt with chosen and rejected, or with completion and label; tools",
    _matches,
    _read,
    _write,
    _write_answer,
    tools=True,
)
