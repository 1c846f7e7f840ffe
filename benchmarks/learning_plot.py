"""Plot of the learning benchmark's results as SVG: satisfaction and win rates by version and seed. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

PANEL, HEIGHT, LEFT, TOP, GAP = 300, 220, 40, 30, 60
"""Pixels: width and height of a panel, left and upper margin, distance of the panels."""
BLUE, RED, GREY = "#2f6fb0", "#b5473c", "#9a9a9a"


@dataclass(frozen=True)
class LearningPanel:
    """One measure by version: a line for each seed, their mean, and the published figures."""

    title: str
    versions: Sequence[str]
    seeds: Sequence[Sequence[float]]
    published: Sequence[float]
    low: float
    high: float


def plot(panels: Sequence[LearningPanel]) -> str:
    """The panels beside each other; seeds grey, their mean blue, the published figures red dashes."""
    width = LEFT + len(panels) * (PANEL + GAP)
    marks = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + 2 * TOP + 20}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{HEIGHT + 2 * TOP + 20}" fill="white"/>',
    ]
    for number, panel in enumerate(panels):
        marks += _panel(panel, LEFT + number * (PANEL + GAP))
    return "\n".join([*marks, "</svg>", ""])


def _panel(panel: LearningPanel, left: float) -> list[str]:
    middle = [statistics.fmean(values) for values in zip(*panel.seeds, strict=True)]
    marks = [
        _text(left, TOP - 12, panel.title),
        _text(left, TOP + HEIGHT + 38, f"blue: mean of {len(panel.seeds)}; red: published"),
        f'<rect x="{left}" y="{TOP}" width="{PANEL}" height="{HEIGHT}" fill="none" stroke="#ccc"/>',
    ]
    ticks = (panel.low, (panel.low + panel.high) / 2, panel.high)
    marks += [_text(left - 34, _y(panel, value) + 4, f"{value:.2f}") for value in ticks]
    marks += [
        _text(_x(panel, left, place) - 12, TOP + HEIGHT + 18, name)
        for place, name in enumerate(panel.versions)
    ]
    marks += [_line(panel, left, values, GREY) for values in panel.seeds]
    marks.append(_line(panel, left, panel.published, RED, ' stroke-dasharray="5 4"'))
    marks.append(_line(panel, left, middle, BLUE, ' stroke-width="3"'))
    return marks


def _line(
    panel: LearningPanel, left: float, values: Sequence[float], colour: str, more: str = ""
) -> str:
    points = " ".join(
        f"{_x(panel, left, place):.1f},{_y(panel, value):.1f}"
        for place, value in enumerate(values[: len(panel.versions)])
    )
    return f'<polyline points="{points}" fill="none" stroke="{colour}"{more}/>'


def _x(panel: LearningPanel, left: float, place: int) -> float:
    return left + (place + 0.5) * PANEL / len(panel.versions)


def _y(panel: LearningPanel, value: float) -> float:
    share = (value - panel.low) / (panel.high - panel.low)
    return TOP + HEIGHT * (1 - min(1.0, max(0.0, share)))


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
