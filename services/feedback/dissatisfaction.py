"""Dissatisfaction in a next turn, by rule: the person says that the answer did not help. Pure.

The rule is narrow: it looks at how a turn begins, where people object, and takes no other turn for
dissatisfied. English and German.
"""

from __future__ import annotations

import re

LOOKED_AT = 200
"""Characters of the turn that are read."""

_OBJECTIONS = (
    r"no[,.!]? (?:that|this|it|you|i)\b",
    r"no[,!.]+\s",
    r"wrong\b",
    r"(?:that|this|it)(?:'s| is| was)(?: still)? (?:wrong|incorrect|not|nonsense|useless)\b",
    r"(?:that|this|it) (?:isn't|wasn't|doesn't|does not|didn't|did not|still)\b",
    r"you (?:misunderstood|didn't|did not|are wrong|ignored|forgot|missed)\b",
    r"(?:not|isn't) what i (?:asked|meant|wanted)\b",
    r"i (?:already (?:said|told)|asked (?:for|about)|didn't ask|did not ask|said)\b",
    r"(?:try|do it|once) again\b",
    r"nein[,.!]",
    r"falsch\b",
    r"das (?:ist|war|stimmt)(?: immer noch| so)? (?:falsch|nicht|quatsch)\b",
    r"(?:so|das) (?:habe|hatte) ich (?:das )?nicht (?:gemeint|gefragt)\b",
)
_BEGINS = re.compile(
    r"\W*(?:sorry,? |but |hm+,? |aber )?(?:" + "|".join(_OBJECTIONS) + ")", re.IGNORECASE
)


def is_dissatisfied(turn: str) -> bool:
    """Whether a next turn begins with an objection to the answer before it."""
    return _BEGINS.match(turn[:LOOKED_AT].replace("’", "'")) is not None
