"""A week of the loop as a report: what its pairs say, Markdown, HTML and next actions. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from services.cli.output import show
from services.cli.trajectory import TITLES, TrajectoryRow, cells, plot
from shared.quality_targets import TARGETS

if TYPE_CHECKING:
    from shared.contracts.events.preferences import PreferencePair

NO_TARGET = ("", ">", float("-inf"))
SIGNALS = {
    "implied_satisfaction": "Implied satisfaction",
    "regenerate_rate": "Regenerated",
    "copy_rate": "Copied",
    "edit_kept": "Kept of edited",
    "abandon_rate": "Abandoned",
    "dissatisfied_rate": "Next turns that object",
}
"""Figures of implicit feedback (requirement C3), shares of 1."""
SESSION_LENGTH = "session_length"
REPRESENTED = (0.5, 2.0)
"""A part of the audience whose share of feedback over its share of requests is outside is warned of."""
RAW_TARGET = 0.8
"""Raw agreement of requirement F7."""
LABELLED_ITEMS = 30
"""Items that several raters labelled before their agreement is warned of."""
SHORT = 0.5
"""A chosen answer shorter than this share of the rejected one is doubtful (requirement P5)."""


@dataclass(frozen=True, slots=True)
class Duel:
    """How often one version's answer was chosen over another's."""

    version: str
    wins: int
    losses: int

    @property
    def rate(self) -> float:
        """Share of wins in [0, 1]."""
        return self.wins / (self.wins + self.losses)


@dataclass(frozen=True, slots=True)
class Correlation:
    """Correlation of implied with explicit satisfaction and its 95 % interval."""

    value: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.lower:.2f} to {self.upper:.2f})"


@dataclass(frozen=True, slots=True)
class Consistency:
    """Agreement of the annotation queue's raters: shares of equal labels, and alpha's 95 % interval."""

    raw: float
    items: int
    alpha: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def action(self) -> str:
        """What to do about it; empty where raters agree, or where too few items say anything."""
        if self.raw >= RAW_TARGET or self.items < LABELLED_ITEMS:
            return ""
        return (
            f"Make the guidelines clearer: raters agree in {_share(self.raw)} of the labels of "
            f"{self.items} items, the target is > {_share(RAW_TARGET)}; see docs/runbooks.md."
        )


@dataclass(frozen=True, slots=True)
class Audience:
    """A category, locale or segment: its share of feedback over its share of requests."""

    dimension: str
    value: str
    representation: float

    @property
    def action(self) -> str:
        """What to do about it; empty where it is represented well enough."""
        low, high = REPRESENTED
        if low <= self.representation <= high:
            return ""
        return (
            f"Ask {'more' if self.representation < low else 'less'} of {self.dimension} "
            f"{self.value}: it gives {self.representation:.1f} times the feedback that its share "
            "of requests would bring."
        )


@dataclass(frozen=True)
class Preferences:
    """The week's pairs, retracted ones left out."""

    per_day: dict[str, int]
    by_source: dict[str, int]
    duels: tuple[Duel, ...]
    mean_length: dict[str, float]
    short_chosen: int
    duplicates: int
    contradictions: int
    retracted: int

    @property
    def total(self) -> int:
        """How many pairs the week brought."""
        return sum(self.per_day.values())


@dataclass(frozen=True)
class Weekly:
    """All that a report says. `figures` are by version and figure, of the week's last day."""

    start: date
    end: date
    target: int
    preferences: Preferences
    versions: tuple[dict[str, str], ...]
    rollouts: tuple[dict[str, str], ...]
    trainings: tuple[dict[str, str], ...]
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    trajectories: Mapping[str, Sequence[TrajectoryRow]] = field(default_factory=dict)
    """By model, up to today."""
    correlations: dict[str, Correlation] = field(default_factory=dict)
    """Of implied with explicit satisfaction, by version."""
    audiences: tuple[Audience, ...] = ()
    consistency: Consistency | None = None
    """None where nothing was labelled by several raters."""
    gains: tuple[dict[str, str], ...] = ()
    """Of versions since the holdout's reference, up to today."""
    gains_missing: str = ""
    """Why the rollout service says none; empty where it answered."""
    missing: str = ""
    """Why the figures of Prometheus are missing; empty where they are there."""

    def actions(self) -> list[str]:
        """What to do next, with the reason."""
        pairs, found = self.preferences, []
        if pairs.total < self.target:
            found.append(
                f"Collect {self.target - pairs.total} more pairs: {pairs.total} of {self.target}."
            )
        if pairs.total and pairs.short_chosen > pairs.total / 10:
            found.append(
                f"Look at what raters choose: {pairs.short_chosen} of {pairs.total} chosen answers "
                "are less than half as long as the rejected one."
            )
        if pairs.contradictions:
            found.append(
                f"Let a third person rate {pairs.contradictions} prompts whose answers were chosen "
                "both ways."
            )
        for version, figures in sorted(self.figures.items()):
            for name, value in sorted(figures.items()):
                title, direction, target = TARGETS.get(name, NO_TARGET)
                if (value < target) if direction == ">" else (value > target):
                    found.append(
                        f"{version}: {title.lower()} is {_share(value)}, the target is "
                        f"{direction} {_share(target)}; see docs/runbooks.md."
                    )
        found += [one.action for one in self.audiences if one.action]
        if self.consistency and self.consistency.action:
            found.append(self.consistency.action)
        failed = [one["job"] for one in self.trainings if one["phase"] == "failed"]
        if failed:
            found.append(f"Look at failed trainings: ratchet train show {failed[0]}.")
        waiting = [one["rollout"] for one in self.rollouts if one["phase"] == "Paused"]
        if waiting:
            found.append(f"Decide on {', '.join(waiting)}, which wait: ratchet rollout status.")
        if self.missing:
            found.append(f"Bring Prometheus back: {self.missing}.")
        return found or ["Nothing: every target was met."]


def count_preferences(
    pairs: Iterable[PreferencePair], retracted: set[str], start: datetime
) -> Preferences:
    """Count a week's pairs that were not taken back.

    Synthetic ones are counted by source alone, as no person gave them. A version's length is the
    mean of its answers' characters, chosen or not. A duplicate has the prompt and both answers of
    another pair; a contradiction has them the other way round.
    """
    from shared.contracts.events.preferences import PairSource

    days = [(start + timedelta(days=n)).date().isoformat() for n in range(7)]
    per_day, sources = Counter(dict.fromkeys(days, 0)), Counter[str]()
    wins, losses = Counter[str](), Counter[str]()
    lengths: dict[str, list[int]] = {}
    seen: set[tuple[str, str, str]] = set()
    contradicted: set[tuple[str, frozenset[str]]] = set()
    short = duplicates = taken_back = 0
    for pair in pairs:
        if pair.pair_id in retracted:
            taken_back += 1
            continue
        sources[pair.source] += 1
        if pair.source is PairSource.synthetic:
            continue
        per_day[pair.created_at.astimezone(UTC).date().isoformat()] += 1
        for version, answer in (
            (pair.chosen_version, pair.chosen),
            (pair.rejected_version, pair.rejected),
        ):
            if version:
                lengths.setdefault(version, []).append(len(answer))
        if pair.chosen_version and pair.rejected_version not in ("", pair.chosen_version):
            wins[pair.chosen_version] += 1
            losses[pair.rejected_version] += 1
        short += len(pair.chosen) < SHORT * len(pair.rejected)
        prompt = repr(pair.messages)
        duplicates += (prompt, pair.chosen, pair.rejected) in seen
        if (prompt, pair.rejected, pair.chosen) in seen:
            contradicted.add((prompt, frozenset((pair.chosen, pair.rejected))))
        seen.add((prompt, pair.chosen, pair.rejected))
    return Preferences(
        per_day=dict(sorted(per_day.items())),
        by_source=dict(sources.most_common()),
        duels=tuple(Duel(one, wins[one], losses[one]) for one in sorted(wins | losses)),
        mean_length={name: sum(all_) / len(all_) for name, all_ in sorted(lengths.items())},
        short_chosen=short,
        duplicates=duplicates,
        contradictions=len(contradicted),
        retracted=taken_back,
    )


def markdown(report: Weekly) -> str:
    """The report for people."""
    pairs = report.preferences
    last = report.end - timedelta(days=1)
    lines = [
        f"# Week {report.start} to {last}",
        "",
        "## Preferences",
        "",
        f"{pairs.total} pairs of {report.target} ({pairs.total / report.target:.0%}).",
        "",
        *_table(("day", "pairs"), pairs.per_day.items()),
        *_table(("source", "pairs"), pairs.by_source.items()),
        "## Versions against each other",
        "",
        *_table(
            ("version", "win rate", "wins", "losses", "mean length (characters)"),
            [
                (
                    duel.version,
                    _share(duel.rate),
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
        "## Versions registered",
        "",
        *_rows(report.versions),
        "## Rollouts",
        "",
        *_rows(report.rollouts),
        "## Trainings",
        "",
        *_rows(report.trainings),
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
    names = [f"{title} ({way} {_share(target)})" for title, way, target in TARGETS.values()]
    rows = [
        (
            version,
            *(_share(figures[name]) if name in figures else "–" for name in TARGETS),
            _share(report.errors[version]) if version in report.errors else "–",
        )
        for version, figures in sorted(report.figures.items())
    ]
    return _table(("version", *names, "Errors (< 1.0 %)"), rows)


def _consistency(found: Consistency | None) -> list[str]:
    if found is None:
        return ["Nothing was labelled by several raters.", ""]
    alpha = "–" if found.alpha is None else f"{found.alpha:.2f}"
    if found.low is not None and found.high is not None:
        alpha += f" ({found.low:.2f} to {found.high:.2f})"
    columns = ("items", f"equal labels (> {_share(RAW_TARGET)})", "Krippendorff's alpha (95 %)")
    return _table(columns, [(found.items, _share(found.raw), alpha)])


def _signals(report: Weekly) -> list[str]:
    rows: list[tuple[str, ...]] = []
    for version, figures in sorted(report.figures.items()):
        length = figures.get(SESSION_LENGTH)
        rows.append(
            (
                version,
                *(_share(figures[name]) if name in figures else "–" for name in SIGNALS),
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


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"
