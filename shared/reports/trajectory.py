"""Improvement trajectory: a model's versions from the first on, beside figures to beat. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared.contracts.events.quality import QualityWindow
    from shared.ranking.standings import VersionRanking
    from shared.registry.deployments import Deployments
    from shared.registry.versions import Version

SATISFACTION_TO_BEAT = (3.5, 3.8, 4.0, 4.2)
"""Mean satisfaction, 1 to 5, of v1.0 and three iterations (requirement M3)."""
WIN_RATE_TO_BEAT = (None, 0.58, 0.62, 0.65)
"""Win rate against v1.0 of the same versions."""
ELO = 400.0
"""Points of rating that are odds of 10 to 1."""
TITLES = {
    "version": "version",
    "state": "state",
    "deployed": "deployed",
    "satisfaction": "satisfaction (1 to 5)",
    "satisfaction_to_beat": "to beat",
    "improvement": "over the first",
    "win_rate_parent": "win rate: parent (judge)",
    "win_rate_first": "win rate: first (people)",
    "win_rate_to_beat": "to beat ",
    "mean_length": "mean length (tokens)",
}
"""Columns of the table, by field."""
PANEL, HEIGHT, MARGIN = 320, 220, 40
"""Pixels of one plot."""
OURS, THEIRS = "#2f6fb0", "#9a9a9a"


@dataclass(frozen=True, slots=True)
class TrajectoryRow:
    """One version. Figures that nothing has measured yet are None."""

    version: str
    parent: str
    state: str
    deployed: str | None
    satisfaction: float | None
    """Mean of the scores of its live answers, 1 to 5."""
    scores: int
    improvement: float | None
    """Satisfaction less the first version's."""
    win_rate_parent: float | None
    """By the judge of its evaluation, in [0, 1]."""
    win_rate_first: float | None
    """By people's votes, in [0, 1]: Bradley-Terry over all votes between the model's versions."""
    votes: int
    mean_length: float | None
    """Tokens of its answers to the evaluation's prompts."""
    satisfaction_to_beat: float | None
    win_rate_to_beat: float | None


def chain(versions: Iterable[Version], to: str = "") -> list[Version]:
    """The versions from the first to one of them, each the parent of the next.

    Args:
        versions: All of a model, in the order of registration.
        to: The last one; empty: the stable version, else the newest.

    """
    known = {version.record.version: version for version in versions}
    stable = [name for name, one in known.items() if one.lifecycle.value == "stable"]
    name = to or next(iter(stable), next(reversed(known), ""))
    found: list[Version] = []
    while (version := known.pop(name, None)) is not None:
        found.append(version)
        name = version.record.parent
    return found[::-1]


def rows(
    versions: Sequence[Version],
    windows: Iterable[QualityWindow],
    ranking: VersionRanking | None,
    deployments: Deployments,
) -> tuple[TrajectoryRow, ...]:
    """The trajectory of a chain of versions.

    Args:
        versions: See `chain`.
        windows: Figures of whole days; of two for the same stretch the later counts.
        ranking: Of the votes between the model's versions, None without votes.
        deployments: When versions got traffic.

    """
    scores = _scores(windows)
    rates = _against_first(versions, ranking)
    votes = {one.version: one.votes for one in ranking.standings} if ranking else {}
    first = _mean(scores.get(versions[0].record.version)) if versions else None
    found: list[TrajectoryRow] = []
    for place, version in enumerate(versions):
        record, name = version.record, version.record.version
        # Prompts and settings were never put before the judge.
        metrics: Mapping[str, float] = getattr(record, "metrics", {})
        mean, stretches = _mean(scores.get(name)), deployments.of(name)
        found.append(
            TrajectoryRow(
                version=name,
                parent=record.parent,
                state=version.lifecycle.value,
                deployed=stretches[0].since.date().isoformat() if stretches else None,
                satisfaction=mean,
                scores=scores.get(name, (0.0, 0))[1],
                improvement=None if mean is None or first is None else mean - first,
                win_rate_parent=metrics.get("win_rate"),
                win_rate_first=rates.get(name),
                votes=votes.get(name, 0),
                mean_length=metrics.get("candidate_length"),
                satisfaction_to_beat=_at(SATISFACTION_TO_BEAT, place),
                win_rate_to_beat=_at(WIN_RATE_TO_BEAT, place),
            )
        )
    return tuple(found)


def cells(trajectory: Sequence[TrajectoryRow]) -> list[tuple[Any, ...]]:
    """The table's rows, in the order of TITLES."""
    return [tuple(getattr(row, name) for name in TITLES) for row in trajectory]


def plot(trajectory: Sequence[TrajectoryRow]) -> str:
    """Satisfaction and win rate over the versions, ours solid, the figures to beat dashed; SVG."""
    names = [row.version for row in trajectory]
    panels = (
        _panel(
            "Satisfaction, 1 to 5",
            names,
            [row.satisfaction for row in trajectory],
            [row.satisfaction_to_beat for row in trajectory],
            (1.0, 5.0),
        ),
        _panel(
            "Win rate against the first version",
            names,
            [row.win_rate_first for row in trajectory],
            [row.win_rate_to_beat for row in trajectory],
            (0.0, 1.0),
        ),
    )
    placed = "".join(
        f'<g transform="translate({number * PANEL} 0)">{panel}</g>'
        for number, panel in enumerate(panels)
    )
    return (
        f'<svg role="img" viewBox="0 0 {PANEL * len(panels)} {HEIGHT}" width="100%" '
        f'font-family="system-ui, sans-serif" font-size="11">'
        f"<title>Improvement over versions; dashed: the figures to beat</title>{placed}</svg>"
    )


def _panel(
    title: str,
    names: Sequence[str],
    ours: Sequence[float | None],
    theirs: Sequence[float | None],
    bounds: tuple[float, float],
) -> str:
    low, high = bounds
    width, height = PANEL - 2 * MARGIN, HEIGHT - 2 * MARGIN
    step = width / max(1, len(names) - 1)

    def points(values: Sequence[float | None]) -> list[tuple[float, float, float]]:
        return [
            (MARGIN + n * step, MARGIN + height * (high - value) / (high - low), value)
            for n, value in enumerate(values)
            if value is not None
        ]

    def line(values: Sequence[float | None], colour: str, dashes: str) -> str:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points(values))
        return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'

    marks = [
        f'<text x="{MARGIN}" y="16" font-size="13">{escape(title)}</text>',
        f'<path d="M{MARGIN} {MARGIN}v{height}h{width}" fill="none" stroke="#ccc"/>',
        f'<text x="4" y="{MARGIN + 4}">{high:g}</text>',
        f'<text x="4" y="{MARGIN + height}">{low:g}</text>',
        line(theirs, THEIRS, ' stroke-dasharray="4 3"'),
        line(ours, OURS, ""),
    ]
    for x, y, value in points(ours):
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{OURS}"/>')
        marks.append(f'<text x="{x - 10:.1f}" y="{y - 8:.1f}">{value:.3g}</text>')
    for number, name in enumerate(names):
        x, short = MARGIN + number * step, name.rpartition("-")[2]
        marks.append(
            f'<text x="{x:.1f}" y="{HEIGHT - 18}" text-anchor="middle">{escape(short)}</text>'
        )
    return "".join(marks)


def _scores(windows: Iterable[QualityWindow]) -> Mapping[str, tuple[float, int]]:
    """Sum and count of the scores in [0, 1] by version."""
    newest = {(one.version, one.start, one.partition): one for one in windows if one.window == "1d"}
    found: dict[str, tuple[float, int]] = {}
    for one in newest.values():
        total, count = found.get(one.version, (0.0, 0))
        found[one.version] = total + one.score_sum, count + one.score_count
    return found


def _mean(scores: tuple[float, int] | None) -> float | None:
    """A mean score as 1 to 5."""
    return 1 + 4 * scores[0] / scores[1] if scores and scores[1] else None


def _against_first(versions: Sequence[Version], ranking: VersionRanking | None) -> dict[str, float]:
    """Chance that each version's answer is chosen over the first one's, where votes link all."""
    if ranking is None or not ranking.connected or not versions:
        return {}
    ratings = {one.version: one.rating for one in ranking.standings}
    first = versions[0].record.version
    if first not in ratings:
        return {}
    return {
        name: 1 / (1 + 10 ** ((ratings[first] - rating) / ELO))
        for name, rating in ratings.items()
        if name != first
    }


def _at(values: Sequence[float | None], place: int) -> float | None:
    return values[place] if place < len(values) else None
