"""LLaMA-Factory's ShareGPT rows for preference training."""

from __future__ import annotations

from typing import Any

from services.cli.pair_formats.pair import BadPair, PairFormat, Row, TextPair, Turn, text

_SPEAKERS = {"user": "human", "assistant": "gpt"}
_ROLES = {speaker: role for role, speaker in _SPEAKERS.items()}


def _read(row: Row) -> TextPair:
    said = row.get("conversations")
    if not isinstance(said, list) or not said:
        raise BadPair("conversations: must be a list of turns")
    messages = [_turn(one, "conversations") for one in said]
    if row.get("system"):
        messages.insert(0, Turn("system", text(row, "system")))
    chosen, rejected = (_turn(row.get(side), side) for side in ("chosen", "rejected"))
    if {chosen.role, rejected.role} != {"assistant"}:
        raise BadPair("chosen, rejected: must be from gpt")
    return TextPair(tuple(messages), chosen.content, rejected.content)


def _turn(value: object, name: str) -> Turn:
    if not isinstance(value, dict) or value.get("from") not in tuple(_ROLES):
        raise BadPair(f"{name}: a turn has from ({' or '.join(_ROLES)}) and value")
    return Turn(_ROLES[value["from"]], text(value, "value"))


def _write(pair: TextPair) -> dict[str, Any]:
    system = [turn.content for turn in pair.messages if turn.role == "system"]
    rest = [turn for turn in pair.messages if turn.role != "system"]
    if len(system) > 1 or (system and pair.messages[0].role != "system") or not rest:
        raise BadPair("messages: the form has one system turn at most, before the others")
    row: dict[str, Any] = {
        "conversations": [{"from": _SPEAKERS[turn.role], "value": turn.content} for turn in rest],
        "chosen": {"from": "gpt", "value": pair.chosen},
        "rejected": {"from": "gpt", "value": pair.rejected},
    }
    return row | ({"system": system[0]} if system else {})


LLAMA_FACTORY = PairFormat(
    "llama-factory",
    "LLaMA-Factory, ShareGPT: conversations, chosen, rejected, system",
    lambda row: "conversations" in row and "chosen" in row,
    _read,
    _write,
)
