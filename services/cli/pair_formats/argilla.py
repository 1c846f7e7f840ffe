"""Argilla's records of a preference question, as `records.to_list()` gives them."""

from __future__ import annotations

from typing import Any

from services.cli.pair_formats.pair import (
    BadPair,
    PairFormat,
    Row,
    TextPair,
    Turn,
    objects,
    placed,
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
    question = f"responses.{QUESTION}"
    given = objects(responses.get(QUESTION), question)
    chosen, rejected = preferred([one.get("value") for one in given], SIDES, question)
    asked = fields.get("prompt")
    prompt = (
        (Turn("user", text(fields, "prompt")),)
        if isinstance(asked, str)
        else turns(asked, "fields.prompt")
    )
    return TextPair(prompt, text(fields, chosen), text(fields, rejected))


def _write(pair: TextPair) -> dict[str, Any]:
    chosen, rejected = placed(pair, SIDES)
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
