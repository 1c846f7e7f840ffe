"""Pair quality (requirement P5): length ratio, similarity, detail, and a score of all three. Pure."""

# pyright: strict
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import fsum
from statistics import fmean
from typing import Any

from shared.contracts.prompt_key import normal_text
from shared.similarity import jaccard

SHINGLE = 3
"""Characters of a shingle: short enough for short answers, and no words are needed."""
CLEAR_SCORE = 0.5
"""Least quality score of a pair with a clear winner."""
_SENTENCE_ENDS = re.compile(r"[.!?…。！？]+(?=\s|$)|\n+")


@dataclass(frozen=True, slots=True)
class PairQuality:
    """How well one pair tells what is better, each part in [0, 1]."""

    length_ratio: float
    """Length of the chosen answer over the rejected one's; may be above 1."""
    similarity: float
    detail: float
    """Share of both answers' sentences that the chosen one has: above a half it is more detailed."""

    @property
    def score(self) -> float:
        """Mean of the length ratio up to 1, the difference of the texts, and the detail."""
        return fmean((min(1.0, self.length_ratio), 1.0 - self.similarity, self.detail))


def quality_of(chosen: str, rejected: str) -> PairQuality:
    """The quality of a pair of non-empty answers."""
    chosen, rejected = chosen.strip(), rejected.strip()
    more, fewer = sentences(chosen), sentences(rejected)
    return PairQuality(
        length_ratio=len(chosen) / max(1, len(rejected)),
        similarity=similarity(chosen, rejected),
        detail=more / (more + fewer),
    )


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of the two texts' sets of character shingles (Broder 1997), in [0, 1].

    Exact, and linear in the texts: MinHash estimates the same number and pays off only where one
    text is compared with many.
    """
    return jaccard(_shingles(one), _shingles(other))


def sentences(text: str) -> int:
    """How many sentences a text has, at least one."""
    parts = _SENTENCE_ENDS.split(text)
    return max(1, sum(any(sign.isalnum() for sign in part) for part in parts))


def quality_card(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Shares of a dataset's pairs in per cent: mean score, clear winners, more detailed chosen."""
    counts: Counter[str] = Counter()

    def scores() -> Iterator[float]:
        for row in rows:
            one = quality_of(row["chosen"], row["rejected"])
            counts.update(rows=1, clear=one.score >= CLEAR_SCORE, detailed=one.detail > 0.5)
            yield one.score

    score = fsum(scores())
    if not counts["rows"]:
        return {}
    return {
        "score_percent": round(100 * (score / counts["rows"])),
        "clear_winner_percent": round(100 * (counts["clear"] / counts["rows"])),
        "more_detailed_percent": round(100 * (counts["detailed"] / counts["rows"])),
    }


def _shingles(text: str) -> set[str]:
    normal = normal_text(text)
    return {normal[at : at + SHINGLE] for at in range(max(1, len(normal) - SHINGLE + 1))}
