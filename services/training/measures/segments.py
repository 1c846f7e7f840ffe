"""Fairness by segment: win rates of prompts' segments, the worst one's gap, and its cases. Pure."""

# pyright: strict
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from services.training.dataset_rows import SEGMENTS
from shared.intervals import difference, wilson

MIN_PROMPTS = 8
"""A smaller segment is not judged: even when it loses every prompt, that may be chance."""
ALPHA = 0.01
"""Chance of a false alarm over all segments of one evaluation, at most (Bonferroni)."""
SHOWN_CASES = 3


@dataclass(frozen=True)
class SegmentWins:
    """How a candidate did against its parent on the prompts of one segment."""

    name: str
    """`<dimension>=<value>`."""
    prompts: int
    wins: float
    """Ties count half."""
    low: float
    high: float
    """Simultaneous bounds of the win rate over all segments of the evaluation."""
    gap: float
    """Win rate less that of all other prompts."""
    gap_low: float
    gap_high: float
    """95 % interval of the gap."""
    cases: tuple[str, ...]
    """Last turns of the prompts that lost most."""

    @property
    def win_rate(self) -> float:
        """Share of prompts won."""
        return self.wins / self.prompts


def segment_wins(rows: Iterable[Mapping[str, Any]]) -> list[SegmentWins]:
    """Segments with prompts enough, the worst upper bound first.

    A segment that holds all prompts says nothing that the win rate does not, and is left out.

    Args:
        rows: Prompts with `parent_score` and `candidate_score` by the judge, and maybe `meta`.

    """
    judged = [row for row in rows if "candidate_score" in row]
    groups: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in judged:
        for dimension in SEGMENTS:
            if value := row.get("meta", {}).get(dimension):
                groups[f"{dimension}={value}"].append(row)
    told = {name: mine for name, mine in groups.items() if MIN_PROMPTS <= len(mine) < len(judged)}
    if not told:
        return []
    z = NormalDist().inv_cdf(1 - ALPHA / len(told))
    all_wins = sum(map(_won, judged))
    found = [_wins(name, mine, len(judged), all_wins, z) for name, mine in told.items()]
    return sorted(found, key=lambda one: (one.high, one.name))


def segment_figures(segments: Sequence[SegmentWins]) -> dict[str, float]:
    """The worst segment's bound and gap; a bound of 1 where no segment can be judged."""
    figures = {"segments": float(len(segments)), "segment_worst_high": 1.0}
    if segments:
        worst = segments[0]
        figures |= {
            "segment_worst_high": worst.high,
            "segment_gap": worst.gap,
            "segment_gap_low": worst.gap_low,
            "segment_gap_high": worst.gap_high,
        }
    return figures


def _wins(
    name: str, rows: Sequence[Mapping[str, Any]], total: int, all_wins: float, z: float
) -> SegmentWins:
    wins, count = sum(map(_won, rows)), len(rows)
    low, high = wilson(wins, count, z)
    others = (all_wins - wins, total - count)
    gap_low, gap_high = difference((wins, count), others)
    worst = sorted(rows, key=_gain)[:SHOWN_CASES]
    return SegmentWins(
        name=name,
        prompts=count,
        wins=wins,
        low=low,
        high=high,
        gap=wins / count - others[0] / others[1],
        gap_low=gap_low,
        gap_high=gap_high,
        cases=tuple(str(row["messages"][-1]["content"]) for row in worst if _gain(row) < 0),
    )


def _gain(row: Mapping[str, Any]) -> float:
    return row["candidate_score"] - row["parent_score"]


def _won(row: Mapping[str, Any]) -> float:
    gain = _gain(row)
    return 0.5 if gain == 0 else float(gain > 0)
