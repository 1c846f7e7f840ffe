"""Augmentation of preference pairs: the prompt is varied, the answers and their order stay. Pure.

Synonym replacement and random insertion are those of EDA (Wei and Zou 2019), by an own English
lexicon; paraphrase and back-translation (Sennrich et al. 2016) are written by a model. A variant is
marked, and carries its original's turns, so that no dataset trains on it where the original is
held out.
"""

# pyright: strict
from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from shared.contracts.row_sources import AUGMENTED

LEXICON = Path(__file__).with_name("synonyms.txt")
"""Own list: a group of English words of one meaning a line."""
Method = Literal["synonym", "insertion", "paraphrase", "back-translation"]
METHODS: tuple[Method, ...] = get_args(Method)
BY_LEXICON: frozenset[Method] = frozenset({"synonym", "insertion"})
CHANGED_SHARE = 0.15
"""Of a prompt's words that the lexicon changes, at least one."""
LENGTHS = (0.5, 2.0)
"""A variant's length against the original's: beyond, something was lost or added."""
_WORD = re.compile(r"[A-Za-z]+")
_NUMBER = re.compile(r"\w*\d[\w./:-]*")

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PlannedVariant:
    """A row that is to be varied, and how; `seed` decides all chance of it."""

    row: Row
    method: Method
    seed: str

    @property
    def prompt(self) -> str:
        """The text that is varied: the last turn's."""
        return str(self.row["messages"][-1]["content"])

    def by_lexicon(self) -> str:
        """The prompt varied by the lexicon; empty where it knows none of its words."""
        vary = replaced if self.method == "synonym" else inserted
        return vary(self.prompt, random.Random(self.seed))

    def with_prompt(self, prompt: str) -> dict[str, Any]:
        """The varied row."""
        *before, last = self.row["messages"]
        meta = {**self.row.get("meta", {}), "source": AUGMENTED, "method": self.method}
        return {
            **self.row,
            "messages": [*before, {**last, "content": prompt}],
            "origin": list(self.row["messages"]),
            "meta": meta,
        }


def plan(
    rows: Sequence[Row], methods: Sequence[Method], share: float, seed: int
) -> list[PlannedVariant]:
    """Which rows are varied and how, such that variants are at most `share` of all rows."""
    count = int(share * len(rows) / (1 - share) + 1e-9)
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return [
        PlannedVariant(rows[order[n % len(rows)]], methods[n % len(methods)], f"{seed}/{n}")
        for n in range(count)
    ]


def fault_of(original: str, variant: str) -> str:
    """Why a variant is not kept, by a closed set of reasons; empty where nothing is wrong."""
    one, other = " ".join(original.split()), " ".join(variant.split())
    if not other:
        return "empty"
    if one.casefold() == other.casefold():
        return "unchanged"
    if not LENGTHS[0] <= len(other) / max(1, len(one)) <= LENGTHS[1]:
        return "length"
    if Counter(_NUMBER.findall(one)) != Counter(_NUMBER.findall(other)):
        return "numbers"  # an order number or an amount that changed asks something else
    return ""


def replaced(text: str, chance: random.Random) -> str:
    """The text with some words replaced by synonyms; empty where the lexicon knows none."""
    places = _known(text)
    if not places:
        return ""
    some = sorted(chance.sample(places, _changed(text, places)), key=lambda one: -one.start())
    for place in some:
        synonym = chance.choice(_synonyms()[place.group().lower()])
        synonym = synonym.capitalize() if place.group()[0].isupper() else synonym
        text = text[: place.start()] + synonym + text[place.end() :]
    return text


def inserted(text: str, chance: random.Random) -> str:
    """The text with synonyms of some of its words at random places; empty as `replaced`."""
    places = _known(text)
    if not places:
        return ""
    words = text.split(" ")
    for place in chance.sample(places, _changed(text, places)):
        synonym = chance.choice(_synonyms()[place.group().lower()])
        words.insert(chance.randrange(len(words) + 1), synonym)
    return " ".join(words)


def _known(text: str) -> list[re.Match[str]]:
    return [one for one in _WORD.finditer(text) if one.group().lower() in _synonyms()]


def _changed(text: str, places: Sequence[object]) -> int:
    return min(len(places), max(1, round(CHANGED_SHARE * len(text.split()))))


@cache
def _synonyms() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for line in LEXICON.read_text("utf-8").splitlines():
        group = line.split()
        for word in group:
            others = tuple(other for other in group if other != word)
            found[word] = tuple(dict.fromkeys((*found.get(word, ()), *others)))
    return found
