"""Daily quality figures of versions against their targets: a fold of quality windows. Pure."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from shared.contracts.events.quality import QualityWindow
from shared.quality_targets import TARGETS

SUMS = (
    "interactions",
    "errors",
    "interactions_with_feedback",
    "feedback",
    "positive",
    "negative",
    "corrections",
    "score_sum",
    "score_count",
)


def daily_figures(windows: Iterable[QualityWindow]) -> list[dict[str, Any]]:
    """Figures of each version and whole day, the newest day first.

    Of two windows for the same stretch of a partition the later counts. A figure whose denominator
    is 0 is None.
    """
    newest = {(one.version, one.start, one.partition): one for one in windows if one.window == "1d"}
    sums: dict[tuple[datetime, str], dict[str, float]] = {}
    for window in newest.values():
        day = sums.setdefault((window.start, window.version), dict.fromkeys(SUMS, 0.0))
        for name in SUMS:
            day[name] += getattr(window, name)
    return [
        {
            "day": start.date().isoformat(),
            "version": version,
            "requests": round(total["interactions"]),
            "errors": _share(total["errors"], total["interactions"]),
            "figures": _figures(total),
        }
        for (start, version), total in sorted(
            sums.items(), key=lambda one: (-one[0][0].timestamp(), one[0][1])
        )
    ]


def targets() -> list[dict[str, Any]]:
    """Each figure's title, direction and target."""
    return [
        {"figure": name, "title": title, "direction": direction, "target": target}
        for name, (title, direction, target) in TARGETS.items()
    ]


def _figures(total: dict[str, float]) -> dict[str, float | None]:
    return {
        "feedback_rate": _share(total["interactions_with_feedback"], total["interactions"]),
        "positive_ratio": _share(total["positive"], total["positive"] + total["negative"]),
        "correction_rate": _share(total["corrections"], total["feedback"]),
        "satisfaction": _share(total["score_sum"], total["score_count"]),
    }


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
