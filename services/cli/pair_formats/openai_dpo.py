"""OpenAI's rows for preference fine-tuning (DPO)."""

from __future__ import annotations

from typing import Any

from services.cli.pair_formats.pair import BadPair, PairFormat, Row, TextPair, answer, turns


def _read(row: Row) -> TextPair:
    asked = row.get("input")
    if not isinstance(asked, dict):
        raise BadPair("input: must be an object with messages")
    if asked.get("tools"):
        raise BadPair("input: a prompt with tools is more than text")
    return TextPair(
        turns(asked.get("messages"), "input.messages"),
        answer(row.get("preferred_output"), "preferred_output"),
        answer(row.get("non_preferred_output"), "non_preferred_output"),
    )


def _write(pair: TextPair) -> dict[str, Any]:
    return {
        "input": {"messages": [turn.as_openai() for turn in pair.messages]},
        "preferred_output": [{"role": "assistant", "content": pair.chosen}],
        "non_preferred_output": [{"role": "assistant", "content": pair.rejected}],
    }


OPENAI_DPO = PairFormat(
    "openai-dpo",
    "OpenAI preference fine-tuning: input, preferred_output, non_preferred_output",
    lambda row: "preferred_output" in row,
    _read,
    _write,
)
