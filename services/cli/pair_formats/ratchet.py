"""Ratchet's own rows, as datasets hold them and `ratchet train --dataset` reads them."""

from __future__ import annotations

from typing import Any

from services.cli.pair_formats.pair import BadPair, PairFormat, Row, TextPair, text, turns


def _read(row: Row) -> TextPair:
    if any(name in row for name in ("chosen_turn", "rejected_turn", "tools")):
        raise BadPair("chosen: an answer or a prompt with tools is more than text")
    meta = row.get("meta")
    kept = {str(key): str(value) for key, value in meta.items()} if isinstance(meta, dict) else {}
    return TextPair(
        turns(row.get("messages"), "messages"), text(row, "chosen"), text(row, "rejected"), kept
    )


def _write(pair: TextPair) -> dict[str, Any]:
    row: dict[str, Any] = {
        "messages": [turn.as_openai() for turn in pair.messages],
        "chosen": pair.chosen,
        "rejected": pair.rejected,
    }
    return row | ({"meta": dict(pair.meta)} if pair.meta else {})


RATCHET = PairFormat(
    "ratchet",
    "messages, chosen, rejected, meta",
    lambda row: "messages" in row and isinstance(row.get("chosen"), str),
    _read,
    _write,
)
