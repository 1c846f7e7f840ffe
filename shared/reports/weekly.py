"""Weekly report: what a week's pairs, figures and rollouts say, and what to do next. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from shared.pair_quality import quality_card
from shared.quality_targets import TARGETS
from shared.reports.trajectory import TrajectoryRow

if TYPE_CHECKING:
    from shared.contracts.events.preferences import PreferencePair

WEEK = timedelta(days=7)
FORECAST_AFTER = timedelta(days=1)
"""Time of a week before its pace says anything of its end."""
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
            f"Make the guidelines clearer: raters agree in {percent(self.raw)} of the labels of "
            f"{self.items} items, the target is > {percent(RAW_TARGET)}; see docs/runbooks.md."
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


@dataclass(frozen=True, slots=True)
class Incident:
    """An alert that fired in the week, and for how many minutes, whatever it fired of."""

    alert: str
    severity: str
    minutes: int

    @property
    def action(self) -> str:
        """What to do about it; empty where it called nobody."""
        if self.severity != "page":
            return ""
        return (
            f"Find out why {self.alert} called people ({self.minutes} minutes); "
            f"see docs/runbooks.md#{self.alert.lower()}."
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
    per_category: dict[str, int] = field(default_factory=dict[str, int])
    """By the category of the question; empty where it has none."""
    quality: dict[str, int] = field(default_factory=dict[str, int])
    """Shares in per cent (`quality_card`); empty without pairs."""

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
    forecast: int | None = None
    """Pairs at the week's end at its pace so far; None of a week that is over or has just begun."""
    figures: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    errors: dict[str, float] = field(default_factory=dict[str, float])
    trajectories: Mapping[str, Sequence[TrajectoryRow]] = field(
        default_factory=dict[str, Sequence[TrajectoryRow]]
    )
    """By model, up to today."""
    correlations: dict[str, Correlation] = field(default_factory=dict[str, Correlation])
    """Of implied with explicit satisfaction, by version."""
    audiences: tuple[Audience, ...] = ()
    consistency: Consistency | None = None
    """None where nothing was labelled by several raters."""
    incidents: tuple[Incident, ...] = ()
    """The longest first."""
    gains: tuple[dict[str, str], ...] = ()
    """Of versions since the holdout's reference, up to today."""
    gains_missing: str = ""
    """Why the rollout service says none; empty where it answered."""
    missing: str = ""
    """Why the figures of Prometheus are missing; empty where they are there."""

    @property
    def outlook(self) -> str:
        """What the week will end with at its pace so far; empty where that says nothing."""
        return "" if self.forecast is None else f", about {self.forecast} by its end at this pace"

    def actions(self) -> list[str]:
        """What to do next, with the reason."""
        pairs, found = self.preferences, list[str]()
        if pairs.total < self.target:
            found.append(
                f"Collect {self.target - pairs.total} more pairs: {pairs.total} of {self.target}"
                f"{self.outlook}."
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
                        f"{version}: {title.lower()} is {percent(value)}, the target is "
                        f"{direction} {percent(target)}; see docs/runbooks.md."
                    )
        found += [one.action for one in self.audiences if one.action]
        if self.consistency and self.consistency.action:
            found.append(self.consistency.action)
        found += [one.action for one in self.incidents if one.action]
        failed = [one["job"] for one in self.trainings if one["phase"] == "failed"]
        if failed:
            found.append(f"Look at failed trainings: ratchet train show {failed[0]}.")
        waiting = [one["rollout"] for one in self.rollouts if one["phase"] == "Paused"]
        if waiting:
            found.append(f"Decide on {', '.join(waiting)}, which wait: ratchet rollout status.")
        if self.missing:
            found.append(f"Bring Prometheus back: {self.missing}.")
        return found or ["Nothing: every target was met."]


def forecast_of(collected: int, elapsed: timedelta) -> int | None:
    """Pairs at a week's end at its pace so far; None before FORECAST_AFTER, which says too little."""
    return None if elapsed < FORECAST_AFTER else (collected * WEEK) // elapsed


def week_of(day: str, now: datetime) -> tuple[datetime, datetime]:
    """Monday to Monday around a day, else the last seven days up to tomorrow's midnight, in UTC.

    Raises:
        ValueError: the text is no day.

    """
    if not day:
        end = datetime.combine(now.astimezone(UTC).date(), datetime.min.time(), UTC)
        return end + timedelta(days=1) - WEEK, end + timedelta(days=1)
    found = date.fromisoformat(day)
    monday = found - timedelta(days=found.weekday())
    start = datetime.combine(monday, datetime.min.time(), UTC)
    return start, start + WEEK


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
    per_day, sources, categories = Counter(dict.fromkeys(days, 0)), Counter[str](), Counter[str]()
    kept: list[dict[str, str]] = []
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
        categories[pair.context.category] += 1
        kept.append({"chosen": pair.chosen, "rejected": pair.rejected})
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
        per_category=dict(categories.most_common()),
        quality=quality_card(kept),
    )


def percent(value: float) -> str:
    """A share of 1 for people."""
    return f"{100 * value:.1f} %"
