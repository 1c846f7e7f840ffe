"""Pairs from thumbs alone: a good answer against a bad one to another prompt. Pure.

A judge needs comparisons, and a product without votes has none. It learns from thumbs as a
Bradley-Terry model does of any two answers (a thumb up is to score above a thumb down). How hard a
prompt is gets into its scores, but both arms of an evaluation answer the same prompt, so that part
cancels.
"""

# pyright: strict
from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain, groupby, islice
from typing import Any

from services.training.dataset_rows import Row
from services.training.sides import rank
from services.training.spill import keep, sorted_rows, spilled

SOURCE = "thumbs"
RUN_ROWS = 2_000
"""Rows, texts and all, that are sorted in memory."""
BOTH = (True, False)
"""Labels of answers: good and bad."""


def paired_thumbs(rows: Iterable[Mapping[str, Any]]) -> Collection[Row]:
    """Pairs of good and bad answers, each answer in one pair at most, of one category first.

    Args:
        rows: Lines of labelled answers. Those with tools or more than text are passed over: the two
            prompts of a pair have one set of tools.

    Returns:
        Rows with `messages` and `chosen` of the good answer, `rejected_messages` and `rejected` of
        the bad one.

    """
    plain = (row for row in rows if "label" in row and not {"tools", "answer_turn"} & row.keys())
    ordered = sorted_rows(plain, _place, RUN_ROWS)
    good, bad = (keep(ordered, lambda row, label=label: row["label"] is label) for label in BOTH)
    counts = Counter(map(_category, good)) & Counter(map(_category, bad))
    of_one_category = map(_pair, _within(good, counts), _within(bad, counts))
    left = map(_pair, _beyond(good, counts), _beyond(bad, counts))
    return spilled(chain(of_one_category, left))


def _within(rows: Iterable[Mapping[str, Any]], counts: Mapping[str, int]) -> Iterator[Any]:
    """The first rows of each category, as many as there are pairs."""
    for category, mine in groupby(rows, _category):
        yield from islice(mine, counts[category])


def _beyond(rows: Iterable[Mapping[str, Any]], counts: Mapping[str, int]) -> Iterator[Any]:
    """The other rows."""
    for category, mine in groupby(rows, _category):
        yield from islice(mine, counts[category], None)


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


def _place(row: Mapping[str, Any]) -> tuple[str, float, str]:
    name = row["meta"]["row_id"]
    return _category(row), rank(name), name


def _category(row: Mapping[str, Any]) -> str:
    return str(row["meta"].get("category", ""))
