"""TRL's conversational preference rows, prompt explicit (written, read) or implicit (read)."""

from __future__ import annotations

from typing import Any

from services.cli.pair_formats.pair import BadPair, PairFormat, Row, TextPair, answer, turns


def _read(row: Row) -> TextPair:
    if "prompt" in row:
        return TextPair(
            turns(row["prompt"], "prompt"),
            answer(row.get("chosen"), "chosen"),
            answer(row.get("rejected"), "rejected"),
        )
    return shared_prompt(row)


def shared_prompt(row: Row) -> TextPair:
    """A pair of whole conversations that differ in their last turn.

    Raises:
        BadPair: they differ before it.

    """
    *prompt, chosen = turns(row.get("chosen"), "chosen")
    *other, rejected = turns(row.get("rejected"), "rejected")
    if not prompt or prompt != other:
        raise BadPair("chosen, rejected: must have the same turns but for the last one")
    return TextPair(
        tuple(prompt),
        answer(chosen.as_openai(), "chosen"),
        answer(rejected.as_openai(), "rejected"),
    )


def _write(pair: TextPair) -> dict[str, Any]:
    return {
        "prompt": [turn.as_openai() for turn in pair.messages],
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
    }


TRL = PairFormat(
    "trl",
    "TRL, conversational: prompt, chosen and rejected as lists of turns",
    lambda row: isinstance(row.get("chosen"), list) and not isinstance(row.get("prompt"), str),
    _read,
    _write,
)
