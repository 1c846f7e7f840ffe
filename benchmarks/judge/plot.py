"""Plot of the times to detection as SVG: share of rollouts caught by the candidate's requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10

WIDTH, HEIGHT, LEFT, BOTTOM = 820, 380, 50, 40
COLOURS = ("#1b6ca8", "#c2571a", "#2d7d46", "#8a3b8f")
DASHES = ("", "6 3", "2 3")
DECADES = (1, 5)
"""Powers of ten on the axis of requests."""


def detection_plot(requests: Mapping[str, Sequence[float]]) -> str:
    """One step line for each row, requests on a logarithmic axis; `requests` are sorted."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for power in range(DECADES[0], DECADES[1] + 1):
        at = _x(10**power)
        lines.append(f'<path d="M{at:.0f} 10V{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        lines.append(
            f'<text x="{at:.0f}" y="{HEIGHT - 24}" text-anchor="middle">{10**power:,}</text>'
        )
    lines.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">requests of the candidate</text>')
    lines += [f'<text x="8" y="{_y(share) + 4:.0f}">{share:.0%}</text>' for share in (0, 0.5, 1)]
    for place, (name, caught) in enumerate(requests.items()):
        style = (
            f'stroke="{COLOURS[place % 4]}" stroke-dasharray="{DASHES[place // 4 % 3]}" fill="none"'
        )
        points = " ".join(
            f"{_x(caught[min(int(part * len(caught)), len(caught) - 1)]):.1f},{_y(part):.1f}"
            for part in (n / 50 for n in range(51))
            if caught
        )
        lines.append(f'<polyline points="{points}" {style}/>')
        at = 20 + 15 * place
        lines.append(f'<path d="M{WIDTH - 250} {at}h24" {style}/>')
        lines.append(f'<text x="{WIDTH - 220}" y="{at + 4}">{name}</text>')
    return "\n".join((*lines, "</svg>", ""))


def _x(requests: float) -> float:
    low, high = DECADES
    part = (log10(max(requests, 10**low)) - low) / (high - low)
    return LEFT + part * (WIDTH - LEFT - 270)


def _y(share: float) -> float:
    return 14 + (1 - share) * (HEIGHT - BOTTOM - 14)
