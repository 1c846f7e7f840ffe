"""OpenAI's rows for preference fine-tuning (DPO)."""

from __future__ import annotations

from typing import Any

from services.cli.pair_formats.pair import (
    BadPair,
    PairFormat,
    PairRow,
    Row,
    answer,
    openai_turns,
    tools_of,
    turns,
)
from shared.contracts.conversation import openai_tools


def _read(row: Row) -> PairRow:
    asked = row.get("input")
    if not isinstance(asked, dict):
        raise BadPair("input: must be an object with messages")
    return PairRow(
        turns(asked.get("messages"), "input.messages"),
        answer(row.get("preferred_output"), "preferred_output"),
        answer(row.get("non_preferred_output"), "non_preferred_output"),
        tools_of(asked.get("tools"), "input.tools"),
    )


def _write(pair: PairRow) -> dict[str, Any]:
    tools = {"tools": openai_tools(pair.tools)} if pair.tools else {}
    return {
        "input": {"messages": openai_turns(pair.messages), **tools},
        "preferred_output": openai_turns([pair.chosen]),
        "non_preferred_output": openai_turns([pair.rejected]),
    }


OPENAI_DPO = PairFormat(
    "openai-dpo",
    "OpenAI preference fine-tuning: input, preferred_output, non_preferred_output",
    lambda row: "preferred_output" in row,
    _read,
    _write,
    tools=True,
)
