"""Weekly report for people: Markdown, a self-contained HTML page with plots, a few lines for a chat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from services.cli.output import show
from shared.quality_targets import TARGETS
from shared.reports.trajectory import TITLES, cells, plot
from shared.reports.weekly import (
    RAW_TARGET,
    SESSION_LENGTH,
    SIGNALS,
    Consistency,
    Weekly,
    percent,
)
from shared.webhook_message import WebhookMessage

QUALITY = {
    "clear_winner_percent": "with a clear winner",
    "more_detailed_percent": "whose chosen answer has more sentences",
    "score_percent": "quality score, mean",
}
"""Figures of the pairs' card by what they say."""


def markdown(report: Weekly) -> str:
    """The report for people."""
    pairs = report.preferences
    last = report.end - timedelta(days=1)
    lines = [
        f"# Week {report.start} to {last}",
        "",
        "## Preferences",
        "",
        f"{pairs.total} pairs of {report.target} ({pairs.total / report.target:.0%}){report.outlook}.",
        "",
        *_table(("day", "pairs"), pairs.per_day.items()),
        *_table(("source", "pairs"), pairs.by_source.items()),
        *_table(
            ("category", "pairs"),
            [(name or "none named", count) for name, count in pairs.per_category.items()],
        ),
        "## Versions against each other",
        "",
        *_table(
            ("version", "win rate", "wins", "losses", "mean length (characters)"),
            [
                (
                    duel.version,
                    percent(duel.rate),
                    duel.wins,
                    duel.losses,
                    f"{pairs.mean_length.get(duel.version, 0):.0f}",
                )
                for duel in pairs.duels
            ],
        ),
        "## Improvement over versions",
        "",
        *_trajectories(report),
        "## Gain since the holdout's reference",
        "",
        *_gains(report),
        "## Live figures, last day of the week",
        "",
        *_figures(report),
        "## What people do with answers, last day of the week",
        "",
        *_signals(report),
        "## Whom feedback comes from, last day of the week",
        "",
        *_table(
            ("part", "value", "share of feedback over share of requests"),
            [(one.dimension, one.value, f"{one.representation:.2f}") for one in report.audiences],
        ),
        "## Agreement of raters",
        "",
        *_consistency(report.consistency),
        "## Data quality",
        "",
        *_table(
            ("what", "pairs"),
            [
                ("chosen less than half as long as rejected", pairs.short_chosen),
                ("the same pair again", pairs.duplicates),
                ("chosen both ways", pairs.contradictions),
                ("taken back by people", pairs.retracted),
            ],
        ),
        *_table(
            ("of the pairs", "share"),
            [(title, f"{pairs.quality[name]} %") for name, title in QUALITY.items()]
            if pairs.quality
            else [],
        ),
        "## Versions registered",
        "",
        *_rows(report.versions),
        "## Rollouts",
        "",
        *_rows(report.rollouts),
        "## Trainings",
        "",
        *_rows(report.trainings),
        "## Incidents",
        "",
        *_incidents(report),
        "## Next actions",
        "",
        *(f"{number}. {action}" for number, action in enumerate(report.actions(), 1)),
    ]
    return "\n".join(lines) + "\n"


def summary(report: Weekly) -> str:
    """The report in a few lines, for a chat."""
    last = report.end - timedelta(days=1)
    pairs = report.preferences.total
    return "\n".join(
        (
            f"Ratchet, week {report.start} to {last}: {pairs} pairs of {report.target} "
            f"({pairs / report.target:.0%}), {len(report.versions)} versions registered.",
            *(f"- {action}" for action in report.actions()),
        )
    )


def chat_message(report: Weekly, at: datetime) -> WebhookMessage:
    """What a webhook gets of the report, made at that time."""
    return WebhookMessage(
        type="report.weekly",
        id=f"report.weekly/{report.start}/{report.end}",
        at=at,
        text=summary(report),
        data={
            "from": report.start.isoformat(),
            "until": report.end.isoformat(),
            "collected": report.preferences.total,
            "target": report.target,
            "forecast": report.forecast,
            "versions": len(report.versions),
            "actions": report.actions(),
        },
    )


def html(report: Weekly) -> str:
    """The report as one self-contained page, with the pairs of each day as bars."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown(report))
    body = _after_heading(
        body, "Improvement over versions", map(plot, report.trajectories.values())
    )
    before, heading, after = body.partition("<h2>Versions against each other</h2>")
    style = (
        "body{font:1rem/1.5 system-ui;max-width:48rem;margin:2rem auto;padding:0 1rem}"
        "td,th{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #ccc}"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>Ratchet: week {report.start}</title>\n<style>{style}</style>\n"
        f"{before}{bars(report.preferences.per_day)}\n{heading}{after}</html>\n"
    )


def _after_heading(body: str, title: str, charts: Iterable[str]) -> str:
    heading = f"<h2>{title}</h2>"
    return body.replace(heading, "\n".join((heading, *charts)), 1)


def bars(values: Mapping[str, int]) -> str:
    """A bar chart as SVG, one bar a day."""
    highest = max(1, *values.values())
    step, height = 80, 120
    parts = [
        f'<svg role="img" viewBox="0 0 {step * len(values)} {height + 40}" width="100%">',
        "<title>Pairs a day</title>",
    ]
    for place, (day, count) in enumerate(values.items()):
        tall = height * count / highest
        x, middle = place * step + 10, place * step + step / 2
        parts += [
            f'<rect x="{x}" y="{20 + height - tall:.1f}" width="60" height="{tall:.1f}" '
            'fill="#3b6ea5"/>',
            f'<text x="{middle}" y="{15 + height - tall:.1f}" text-anchor="middle" '
            f'font-size="12">{count}</text>',
            f'<text x="{middle}" y="{height + 36}" text-anchor="middle" font-size="11">{day[5:]}'
            "</text>",
        ]
    return "".join((*parts, "</svg>"))


def _trajectories(report: Weekly) -> list[str]:
    rows = [row for rows in report.trajectories.values() for row in cells(rows)]
    return _table(tuple(TITLES.values()), [[show(cell) for cell in row] for row in rows])


def _gains(report: Weekly) -> list[str]:
    if report.gains_missing:
        return [f"Missing: {report.gains_missing}.", ""]
    return _rows(report.gains)


def _figures(report: Weekly) -> list[str]:
    if report.missing:
        return [f"Missing: {report.missing}.", ""]
    names = [f"{title} ({way} {percent(target)})" for title, way, target in TARGETS.values()]
    rows = [
        (
            version,
            *(percent(figures[name]) if name in figures else "–" for name in TARGETS),
            percent(report.errors[version]) if version in report.errors else "–",
        )
        for version, figures in sorted(report.figures.items())
    ]
    return _table(("version", *names, "Errors (< 1.0 %)"), rows)


def _incidents(report: Weekly) -> list[str]:
    if report.missing:
        return [f"Missing: {report.missing}.", ""]
    rows = [(one.alert, one.severity, one.minutes) for one in report.incidents]
    return _table(("alert", "severity", "minutes that it fired"), rows)


def _consistency(found: Consistency | None) -> list[str]:
    if found is None:
        return ["Nothing was labelled by several raters.", ""]
    alpha = "–" if found.alpha is None else f"{found.alpha:.2f}"
    if found.low is not None and found.high is not None:
        alpha += f" ({found.low:.2f} to {found.high:.2f})"
    columns = ("items", f"equal labels (> {percent(RAW_TARGET)})", "Krippendorff's alpha (95 %)")
    return _table(columns, [(found.items, percent(found.raw), alpha)])


def _signals(report: Weekly) -> list[str]:
    rows: list[tuple[str, ...]] = []
    for version, figures in sorted(report.figures.items()):
        length = figures.get(SESSION_LENGTH)
        rows.append(
            (
                version,
                *(percent(figures[name]) if name in figures else "–" for name in SIGNALS),
                str(report.correlations.get(version, "–")),
                f"{length:.1f}" if length is not None else "–",
            )
        )
    correlation = "Correlation with satisfaction (95 %)"
    columns = ("version", *SIGNALS.values(), correlation, "Turns a session (should rise)")
    return _table(columns, rows)


def _rows(rows: Sequence[Mapping[str, str]]) -> list[str]:
    return _table(tuple(rows[0]), [tuple(row.values()) for row in rows]) if rows else ["None.", ""]


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A Markdown table and an empty line; `None.` where there is no row."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    if not cells:
        return ["None.", ""]
    lines = [list(columns), ["---"] * len(columns), *cells]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]
