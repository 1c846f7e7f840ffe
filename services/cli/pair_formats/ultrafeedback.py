"""UltraFeedback's binarised rows: a prompt's text, and two whole conversations."""

from __future__ import annotations

from typing import Any

from services.cli.pair_formats.pair import PairFormat, PairRow, Row, openai_turns, text
from services.cli.pair_formats.trl import shared_prompt


def _read(row: Row) -> PairRow:
    text(row, "prompt")
    return shared_prompt(row)


def _write(pair: PairRow) -> dict[str, Any]:
    return {
        "prompt": next(
            (turn.content for turn in reversed(pair.messages) if turn.role == "user"),
            pair.messages[-1].content,
        ),
        "chosen": openai_turns([*pair.messages, pair.chosen]),
        "rejected": openai_turns([*pair.messages, pair.rejected]),
    }


ULTRAFEEDBACK = PairFormat(
    "ultrafeedback",
    "UltraFeedback, binarised: prompt as a text, chosen and rejected conversations",
    lambda row: isinstance(row.get("prompt"), str) and isinstance(row.get("chosen"), list),
    _read,
    _write,
)
