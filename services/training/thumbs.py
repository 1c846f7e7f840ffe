"""Pairs from thumbs alone: a good answer against a bad one to another prompt. Pure.

A judge needs comparisons, and a product without votes has none. It learns from thumbs as a
Bradley-Terry model does of any two answers (a thumb up is to score above a thumb down). How hard a
prompt is gets into its scores, but both arms of an evaluation answer the same prompt, so that part
cancels.
"""

# pyright: strict
from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from services.training.dataset_rows import Row
from services.training.sides import rank

SOURCE = "thumbs"


def paired_thumbs(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Pairs of good and bad answers, each answer in one pair at most, of one category first.

    Args:
        rows: Lines of labelled answers. Those with tools or more than text are passed over: the two
            prompts of a pair have one set of tools.

    Returns:
        Rows with `messages` and `chosen` of the good answer, `rejected_messages` and `rejected` of
        the bad one.

    """
    plain = [row for row in rows if "label" in row and not {"tools", "answer_turn"} & row.keys()]
    waiting: defaultdict[str, dict[bool, list[Mapping[str, Any]]]] = defaultdict(
        lambda: {True: [], False: []}
    )
    for row in sorted(plain, key=_place):
        waiting[_category(row)][row["label"]].append(row)
    pairs: list[Row] = []
    left: dict[bool, list[Mapping[str, Any]]] = {True: [], False: []}
    for _, sides in sorted(waiting.items()):
        count = min(len(sides[True]), len(sides[False]))
        pairs += map(_pair, sides[True][:count], sides[False][:count])
        for label, answers in sides.items():
            left[label] += answers[count:]
    pairs += map(_pair, left[True], left[False])
    return pairs


def _pair(good: Mapping[str, Any], bad: Mapping[str, Any]) -> Row:
    meta = {"source": SOURCE, "pair_id": f"{good['meta']['row_id']}/{bad['meta']['row_id']}"}
    category = _category(good) if _category(good) == _category(bad) else ""
    return {
        "messages": good["messages"],
        "chosen": good["answer"],
        "rejected_messages": bad["messages"],
        "rejected": bad["answer"],
        **({"chosen_cut": True} if good.get("answer_cut") else {}),
        **({"rejected_cut": True} if bad.get("answer_cut") else {}),
        "meta": {**meta, **({"category": category} if category else {})},
    }


def _place(row: Mapping[str, Any]) -> tuple[float, str]:
    name = row["meta"]["row_id"]
    return rank(name), name


def _category(row: Mapping[str, Any]) -> str:
    return str(row["meta"].get("category", ""))
