"""Argilla's records of a preference question, as `records.to_list()` gives them."""

from __future__ import annotations

from typing import Any

from services.cli.pair_formats.pair import (
    BadPair,
    PairFormat,
    Row,
    TextPair,
    Turn,
    chosen_first,
    preferred,
    text,
    turns,
)

QUESTION = "preference"
SIDES = ("response1", "response2")


def _read(row: Row) -> TextPair:
    fields, responses = row.get("fields"), row.get("responses")
    if not isinstance(fields, dict) or not isinstance(responses, dict):
        raise BadPair("fields, responses: must be objects")
    given = responses.get(QUESTION)
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise BadPair(f"responses.{QUESTION}: must be a list of answers")
    chosen, rejected = preferred(
        [one.get("value") for one in given], SIDES, f"responses.{QUESTION}"
    )
    asked = fields.get("prompt")
    prompt = (
        (Turn("user", text(fields, "prompt")),)
        if isinstance(asked, str)
        else turns(asked, "fields.prompt")
    )
    return TextPair(prompt, text(fields, chosen), text(fields, rejected))


def _write(pair: TextPair) -> dict[str, Any]:
    chosen, rejected = SIDES if chosen_first(pair) else SIDES[::-1]
    return {
        "fields": {
            "prompt": [turn.as_openai() for turn in pair.messages],
            chosen: pair.chosen,
            rejected: pair.rejected,
        },
        "responses": {QUESTION: [{"value": chosen}]},
    }


ARGILLA = PairFormat(
    "argilla",
    "Argilla: fields prompt, response1, response2, and responses to `preference`",
    lambda row: "fields" in row and "responses" in row,
    _read,
    _write,
)
