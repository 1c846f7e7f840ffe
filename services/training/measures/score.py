"""One weighted score of an evaluation, for parent and candidate. Pure."""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping

ARMS = ("parent", "candidate")


def weighted_scores(figures: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """`parent_score` and `candidate_score`: weighted means of measures in [0, 1].

    Only measures that both arms have count, so that one that is missing shifts neither. The win
    rate is the candidate's; the parent's is what is left of it. Empty where none is known.

    Args:
        figures: `<arm>_<measure>`, and `win_rate`.
        weights: By measure; `win_rate`, `variety` (one less `repetition`) and any other.

    """
    known = dict(figures)
    if "win_rate" in figures:
        won = figures["win_rate"]
        known |= {"parent_win_rate": 1 - won, "candidate_win_rate": won}
    for arm in ARMS:
        if f"{arm}_repetition" in figures:
            known[f"{arm}_variety"] = 1 - figures[f"{arm}_repetition"]
    counted = {
        name: weight
        for name, weight in weights.items()
        if all(f"{arm}_{name}" in known for arm in ARMS)
    }
    total = sum(counted.values())
    if not total:
        return {}
    return {
        f"{arm}_score": sum(w * known[f"{arm}_{name}"] for name, w in counted.items()) / total
        for arm in ARMS
    }
