"""Small charts as inline SVG: shares, intervals, pairs of bars. Pure."""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, LABEL, VALUE, ROW = 640, 150, 70, 24
"""Pixels: whole width, the labels' column, the values' column, height of a row."""
CURVE = 96
"""Height of a curve."""
BLUE, GREY, RED = "#2f6fb0", "#9a9a9a", "#b5473c"
COLOURS = (BLUE, GREY, RED)


def shares(title: str, parts: Sequence[tuple[str, float]]) -> str:
    """One bar of the parts' shares of their sum, which must be above 0; three parts at most."""
    total = sum(value for _, value in parts)
    x, marks = 0.0, list[str]()
    for (name, value), colour in zip(parts, COLOURS, strict=True):
        width = WIDTH * value / total
        marks.append(_bar(x, ROW, width, colour))
        marks.append(
            _text(min(x + 4, WIDTH - 90), 2 * ROW + 14, f"{name} {value:g}") if value else ""
        )
        x += width
    return _svg(title, 2 * ROW + 22, marks)


def intervals(title: str, rows: Sequence[tuple[str, float, float, float]], *, mark: float) -> str:
    """Intervals in [0, 1], each a name, lower bound, value, upper bound; a line at `mark`."""
    span = WIDTH - LABEL - VALUE
    marks = [
        f'<line x1="{LABEL + mark * span:.1f}" y1="{ROW}" x2="{LABEL + mark * span:.1f}" '
        f'y2="{ROW * (len(rows) + 1)}" stroke="{RED}" stroke-dasharray="4 3"/>'
    ]
    for number, (name, low, value, high) in enumerate(rows, start=1):
        y = number * ROW
        marks += [
            _text(0, y + 16, name),
            _bar(LABEL + low * span, y + 9, max(1.0, (high - low) * span), GREY, height=6),
            f'<circle cx="{LABEL + value * span:.1f}" cy="{y + 12}" r="5" fill="{BLUE}"/>',
            _text(WIDTH - VALUE + 8, y + 16, f"{value:.3g}"),
        ]
    return _svg(title, ROW * (len(rows) + 1) + 8, marks)


def paired_bars(title: str, rows: Sequence[tuple[str, float, float]]) -> str:
    """Two bars a row, parent above candidate, to the scale of the row's larger value."""
    span = WIDTH - LABEL - 2 * VALUE
    marks: list[str] = []
    for number, (name, parent, candidate) in enumerate(rows):
        y = ROW + number * 2 * ROW
        scale = max(abs(parent), abs(candidate)) or 1.0
        marks.append(_text(0, y + 24, name))
        for place, (value, colour) in enumerate(((parent, GREY), (candidate, BLUE))):
            top = y + place * (ROW - 4)
            marks.append(_bar(LABEL, top + 4, span * abs(value) / scale, colour, height=ROW - 8))
            marks.append(_text(WIDTH - 2 * VALUE + 8, top + 17, f"{value:.4g}"))
    return _svg(title, ROW * (2 * len(rows) + 1) + 8, marks)


def curve(title: str, points: Sequence[tuple[float, float]]) -> str:
    """A line through two or more points of rising x, between the values' least and largest."""
    values = [value for _, value in points]
    low, high, first = min(values), max(values), points[0][0]
    wide, deep = (points[-1][0] - first) or 1.0, (high - low) or 1.0
    span, bottom = WIDTH - LABEL - VALUE, ROW + CURVE
    line = " ".join(
        f"{LABEL + span * (x - first) / wide:.1f},{bottom - CURVE * (value - low) / deep:.1f}"
        for x, value in points
    )
    marks = [
        f'<polyline points="{line}" fill="none" stroke="{BLUE}" stroke-width="2"/>',
        _text(0, ROW + 12, f"{high:.4g}"),
        _text(0, bottom, f"{low:.4g}"),
        _text(LABEL, bottom + ROW, f"{first:g}"),
        _text(WIDTH - VALUE - 20, bottom + ROW, f"{points[-1][0]:g}"),
    ]
    return _svg(title, bottom + ROW + 8, marks)


def _svg(title: str, height: float, marks: Sequence[str]) -> str:
    return (
        f'<svg role="img" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" '
        f'font-family="system-ui, sans-serif" font-size="13"><title>{escape(title)}</title>'
        f"{_text(0, 14, title)}{''.join(marks)}</svg>"
    )


def _bar(x: float, y: float, width: float, colour: str, *, height: float = ROW - 4) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'
    )


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
