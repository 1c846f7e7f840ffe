"""LMArena's battles: two models' conversations, and which of them won."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from services.cli.pair_formats.pair import BadPair, PairFormat, PairRow, Row, openai_turns, placed
from services.cli.pair_formats.trl import shared_prompt

_OTHER = {"model_a": "model_b", "model_b": "model_a"}


def _read(row: Row) -> PairRow:
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
    return replace(pair, meta=meta)


def _write(pair: PairRow) -> dict[str, Any]:
    won, lost = placed(pair, ("a", "b"))
    return {
        f"model_{won}": pair.meta.get("chosen_version", ""),
        f"model_{lost}": pair.meta.get("rejected_version", ""),
        "winner": f"model_{won}",
        f"conversation_{won}": openai_turns([*pair.messages, pair.chosen]),
        f"conversation_{lost}": openai_turns([*pair.messages, pair.rejected]),
    }


LMARENA = PairFormat(
    "lmarena",
    "LMArena battles: conversation_a, conversation_b, model_a, model_b, winner",
    lambda row: "conversation_a" in row and "winner" in row,
    _read,
    _write,
)
