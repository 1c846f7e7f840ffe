"""UltraFeedback's binarised rows: a prompt's text, and two whole conversations."""

from __future__ import annotations

from typing import Any

from services.cli.pair_formats.pair import PairFormat, Row, TextPair, text
from services.cli.pair_formats.trl import shared_prompt


def _read(row: Row) -> TextPair:
    text(row, "prompt")
    return shared_prompt(row)


def _write(pair: TextPair) -> dict[str, Any]:
    prompt = [turn.as_openai() for turn in pair.messages]
    return {
        "prompt": next(
            (turn.content for turn in reversed(pair.messages) if turn.role == "user"),
            pair.messages[-1].content,
        ),
        "chosen": [*prompt, {"role": "assistant", "content": pair.chosen}],
        "rejected": [*prompt, {"role": "assistant", "content": pair.rejected}],
    }


ULTRAFEEDBACK = PairFormat(
    "ultrafeedback",
    "UltraFeedback, binarised: prompt as a text, chosen and rejected conversations",
    lambda row: isinstance(row.get("prompt"), str) and isinstance(row.get("chosen"), list),
    _read,
    _write,
)
