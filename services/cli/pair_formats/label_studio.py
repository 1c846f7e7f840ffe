"""Label Studio's tasks with a pairwise choice, one task a line."""

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
    placed,
    preferred,
    text,
)

SIDES = ("left", "right")
_FIELDS = {"left": "answer1", "right": "answer2"}


def _read(row: Row) -> PairRow:
    data = row.get("data")
    if not isinstance(data, dict):
        raise BadPair("data: must be an object")
    chosen, rejected = preferred(_choices(row.get("annotations")), SIDES, "annotations")
    said = data.get("prompt")
    if "dialogue" in data:
        dialogue = objects(data["dialogue"], "data.dialogue")
        said = [{"role": one.get("author"), "content": one.get("text")} for one in dialogue]
    sides = (_FIELDS[chosen], _FIELDS[rejected])
    better, worse = (answer(text(data, side), side) for side in sides)
    return PairRow(asked(said, "data.dialogue"), better, worse)


def _choices(annotations: object) -> list[object]:
    """What each pairwise result of the annotations selected."""
    results = [
        result
        for one in objects(annotations, "annotations")
        if not one.get("was_cancelled")
        for result in objects(one.get("result") or [], "annotations.result")
    ]
    pairwise = [one.get("value") for one in results if one.get("type") == "pairwise"]
    return [one.get("selected") for one in objects(pairwise, "annotations.result.value")]


def _write(pair: PairRow) -> dict[str, Any]:
    chosen, rejected = placed(pair, SIDES)
    result = {
        "type": "pairwise",
        "from_name": "comparison",
        "to_name": "answer1,answer2",
        "value": {"selected": chosen},
    }
    return {
        "data": {
            "dialogue": [{"author": turn.role, "text": turn.content} for turn in pair.messages],
            _FIELDS[chosen]: pair.chosen.content,
            _FIELDS[rejected]: pair.rejected.content,
        },
        "annotations": [{"result": [result]}],
    }


LABEL_STUDIO = PairFormat(
    "label-studio",
    "Label Studio: data with dialogue or prompt, answer1, answer2, and pairwise annotations",
    lambda row: "data" in row and "annotations" in row,
    _read,
    _write,
)
