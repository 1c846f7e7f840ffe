"""LMArena's battles: two models' conversations, and which of them won."""

from __future__ import annotations

from typing import Any

from services.cli.pair_formats.pair import BadPair, PairFormat, Row, TextPair, placed
from services.cli.pair_formats.trl import shared_prompt

_OTHER = {"model_a": "model_b", "model_b": "model_a"}


def _read(row: Row) -> TextPair:
    winner = row.get("winner")
    if not isinstance(winner, str) or winner not in _OTHER:
        raise BadPair("winner: must be model_a or model_b; a tie makes no pair")
    loser = _OTHER[winner]
    pair = shared_prompt(
        {
            "chosen": row.get(winner.replace("model", "conversation")),
            "rejected": row.get(loser.replace("model", "conversation")),
        }
    )
    versions = {"chosen_version": row.get(winner), "rejected_version": row.get(loser)}
    meta = {name: str(value) for name, value in versions.items() if value}
    return TextPair(pair.messages, pair.chosen, pair.rejected, meta)


def _write(pair: TextPair) -> dict[str, Any]:
    prompt = [turn.as_openai() for turn in pair.messages]
    won, lost = placed(pair, ("a", "b"))
    return {
        f"model_{won}": pair.meta.get("chosen_version", ""),
        f"model_{lost}": pair.meta.get("rejected_version", ""),
        "winner": f"model_{won}",
        f"conversation_{won}": [*prompt, {"role": "assistant", "content": pair.chosen}],
        f"conversation_{lost}": [*prompt, {"role": "assistant", "content": pair.rejected}],
    }


LMARENA = PairFormat(
    "lmarena",
    "LMArena battles: conversation_a, conversation_b, model_a, model_b, winner",
    lambda row: "conversation_a" in row and "winner" in row,
    _read,
    _write,
)
