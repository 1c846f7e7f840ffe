"""Argilla's records of a preference question, as `records.to_list()` gives them."""

from __future__ import annotations

from typing import Any

from services.cli.pair_formats.pair import (
    BadPair,
    PairFormat,
    PairRow,
    Row,
    answer,
    asked,
    objects,
    openai_turns,
    placed,
    preferred,
    text,
)

QUESTION = "preference"
SIDES = ("response1", "response2")


def _read(row: Row) -> PairRow:
    fields, responses = row.get("fields"), row.get("responses")
    if not isinstance(fields, dict) or not isinstance(responses, dict):
        raise BadPair("fields, responses: must be objects")
    question = f"responses.{QUESTION}"
    given = objects(responses.get(QUESTION), question)
    chosen, rejected = preferred([one.get("value") for one in given], SIDES, question)
    better, worse = (answer(text(fields, side), side) for side in (chosen, rejected))
    return PairRow(asked(fields.get("prompt"), "fields.prompt"), better, worse)


def _write(pair: PairRow) -> dict[str, Any]:
    chosen, rejected = placed(pair, SIDES)
    return {
        "fields": {
            "prompt": openai_turns(pair.messages),
            chosen: pair.chosen.content,
            rejected: pair.rejected.content,
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
