"""The aggregates of a partition: counters, live minutes and quality windows, and the offsets it holds.

They are a sum of contributions, so the order of contributions never matters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar, cast

from services.aggregator.contributions import (
    AudienceCounted,
    Contribution,
    FeedbackCounted,
    FigureDeltas,
    FiguresChanged,
    OutcomeCounted,
    ScoreCounted,
    VoteCounted,
)
from shared.voters import VoterKind, VoterLabels

FIGURES = (
    "interactions",
    "errors",
    "interactions_with_feedback",
    "feedback",
    "positive",
    "negative",
    "corrections",
    "score_sum",
    "score_count",
    "regenerated",
    "copied",
    "edited",
    "kept_sum",
    "abandoned",
    "followed_up",
    "dissatisfied",
    "implied_sum",
    "implied_count",
    "paired",
    "paired_implied",
    "paired_explicit",
    "paired_implied_squared",
    "paired_explicit_squared",
    "paired_product",
    "turns",
    "sessions",
)
"""Names of the places in a figures vector, as in contracts.events.QualityWindow."""
INTERACTIONS, ERRORS, WITH_FEEDBACK, FEEDBACK, POSITIVE, NEGATIVE, CORRECTIONS, SCORE, SCORED = (
    range(9)
)
REGENERATED, COPIED, EDITED, KEPT, ABANDONED, FOLLOWED_UP, DISSATISFIED = range(9, 16)
IMPLIED, IMPLIED_COUNT = 16, 17
PAIRED = tuple(range(18, 24))
"""How many answers have implied and explicit satisfaction x and y, then the sums of x, y, x², y², xy."""
TURNS, SESSIONS = 24, 25

WINDOWS_S = {"1m": 60, "5m": 300, "1h": 3600, "1d": 86_400}
"""Window names and their length in seconds."""
KEPT_S = {"1m": 7200, "5m": 21_600, "1h": 172_800, "1d": 2_764_800}
"""How long after its end a quality window can still be changed by late feedback."""
LIVE_MINUTES = 61
"""Minutes that are kept one by one; older ones are summed into hours."""
LIVE_HOURS = 25
QUALITY_EVERY_S = 10
"""Seconds of stream time between emissions of the quality windows that changed."""
JUMP_S = 60.0
"""Stream time may jump further than this only where the broker's clock and the tick's agree."""
AHEAD_S = 86_400.0
"""Stream time this far ahead of both clocks was set by a wrong one and is put back."""
ENDED_ROLLOUT_S = 7 * 86_400
"""Series of a rollout are dropped when nothing was counted for it this long."""

RATIOS = {
    "feedback_rate": ((WITH_FEEDBACK,), (INTERACTIONS,)),
    "positive_ratio": ((POSITIVE,), (POSITIVE, NEGATIVE)),
    "correction_rate": ((CORRECTIONS,), (FEEDBACK,)),
    "satisfaction": ((SCORE,), (SCORED,)),
    "regenerate_rate": ((REGENERATED,), (INTERACTIONS,)),
    "copy_rate": ((COPIED,), (INTERACTIONS,)),
    "edit_kept": ((KEPT,), (EDITED,)),
    "abandon_rate": ((ABANDONED,), (INTERACTIONS,)),
    "follow_up_rate": ((FOLLOWED_UP,), (INTERACTIONS,)),
    "dissatisfied_rate": ((DISSATISFIED,), (FOLLOWED_UP,)),
    "implied_satisfaction": ((IMPLIED,), (IMPLIED_COUNT,)),
    "session_length": ((TURNS,), (SESSIONS,)),
}
"""Figures of requirements F7 and C3: which sums are the numerator and the denominator."""

Key4 = tuple[str, str, str, str]
VoterScores = tuple[str, str, str, VoterKind, str]
ScoreSeries = TypeVar("ScoreSeries", Key4, VoterScores)
WindowKey = tuple[str, int, str]
"""(window, start in seconds, version)."""
Sums = dict[str, list[float]]
"""Version -> figures vector."""


class Part(NamedTuple):
    """What changes together, and is written apart from the rest of a checkpoint."""

    kind: str
    """A field of the aggregates, or a window."""
    start: int = 0
    """Of minutes and hours their number, of a window its start in seconds."""


FEEDBACK_COUNTS, SCORES, VOTER_SCORES, VOTES, OUTCOMES, AUDIENCE = (
    Part(kind) for kind in ("feedback", "scores", "voter_scores", "votes", "outcomes", "audience")
)
MINUTES, HOURS = "minutes", "hours"


def _no_windows() -> dict[str, dict[int, Sums]]:
    return {window: {} for window in WINDOWS_S}


@dataclass(slots=True)
class Aggregates:
    """Sums of contributions and the vector of offsets they include."""

    offsets: dict[str, int] = field(default_factory=dict)
    """topic -> last offset included."""
    clock_s: float = 0.0
    """Stream time: the newest tick."""
    emitted_s: float = 0.0
    feedback: dict[tuple[str, str], int] = field(default_factory=dict)
    scores: dict[Key4, list[float]] = field(default_factory=dict)
    """(version, arm, rollout, segment) -> [sum, count, event time of the last one]."""
    voter_scores: dict[VoterScores, list[float]] = field(default_factory=dict)
    """(version, arm, rollout, kind of voter, its bounded label) -> the same, in the order they came.
    What an older aggregator wrote may hold each voter by itself."""
    votes: dict[tuple[str, str, str], int] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    audience: dict[tuple[str, str, str], int] = field(default_factory=dict)
    """(requests or feedback, dimension, value) -> how many; dimensions are category, locale, segment."""
    minutes: dict[int, Sums] = field(default_factory=dict)
    hours: dict[int, Sums] = field(default_factory=dict)
    windows: dict[str, dict[int, Sums]] = field(default_factory=_no_windows)
    """Window -> its start in seconds -> sums."""
    changed: set[WindowKey] = field(default_factory=set)
    """Windows that changed since they were last emitted."""
    touched: set[Part] = field(default_factory=set, repr=False, compare=False)
    """Parts that changed since the last checkpoint."""
    _places: dict[tuple[str, int], list[list[float]]] = field(
        default_factory=dict, repr=False, compare=False
    )
    """(version, minute of an interaction's start) -> sums of its windows, all marked as changed.
    Until the next tick or checkpoint, so that the events of one minute look their windows up once."""
    _labels: dict[str, VoterLabels] = field(default_factory=dict, repr=False, compare=False)
    """By rollout: whoever scores with however many keys, a checkpoint holds a few series."""
    dropped: list[str] = field(default_factory=list)
    """Keys of rows that are deleted right after this checkpoint, should that be lost."""

    def apply(self, contributions: Iterable[Contribution]) -> None:
        """Add what one event contributes."""
        touched = self.touched
        # By type, the most frequent first: patterns of `match` would take twice as long.
        for contribution in contributions:
            kind = type(contribution)
            if kind is FiguresChanged:
                self._change_figures(cast("FiguresChanged", contribution))
            elif kind is AudienceCounted:
                what, category, locale, segment = cast("AudienceCounted", contribution)
                audience = self.audience
                for key in (
                    (what, "category", category),
                    (what, "locale", locale),
                    (what, "segment", segment),
                ):
                    audience[key] = audience.get(key, 0) + 1
                touched.add(AUDIENCE)
            elif kind is OutcomeCounted:
                name = cast("OutcomeCounted", contribution).outcome
                self.outcomes[name] = self.outcomes.get(name, 0) + 1
                touched.add(OUTCOMES)
            elif kind is FeedbackCounted:
                version, told = cast("FeedbackCounted", contribution)
                said = (version, told)
                self.feedback[said] = self.feedback.get(said, 0) + 1
                touched.add(FEEDBACK_COUNTS)
            elif kind is ScoreCounted:
                self._count_score(cast("ScoreCounted", contribution))
            else:
                chosen, rejected, result = cast("VoteCounted", contribution)
                vote = (chosen, rejected, result)
                self.votes[vote] = self.votes.get(vote, 0) + 1
                touched.add(VOTES)

    def _count_score(self, counted: ScoreCounted) -> None:
        version, arm, rollout, segment, score, at_s, tenant, api_key = counted
        _add_score(self.scores, (version, arm, rollout, segment), score, at_s)
        self.touched.add(SCORES)
        voters: tuple[tuple[VoterKind, str], ...] = (("tenant", tenant), ("key", api_key))
        for kind, voter in voters:
            if rollout and voter:
                label = self._labels_of(rollout).bounded(kind, voter)
                _add_score(self.voter_scores, (version, arm, rollout, kind, label), score, at_s)
                self.touched.add(VOTER_SCORES)

    def _labels_of(self, rollout: str) -> VoterLabels:
        labels = self._labels.get(rollout)
        if labels is None:
            labels = self._labels[rollout] = VoterLabels()
            for _, _, scored, kind, label in self.voter_scores:
                if scored == rollout:
                    labels.bounded(kind, label)
        return labels

    def _change_figures(self, changed: FiguresChanged) -> None:
        version, start_s, minute, deltas = changed
        now = self.clock_s
        oldest = int(now // 60) - LIVE_MINUTES
        if minute >= oldest:
            _add(self.minutes.setdefault(minute, {}), version, deltas)
            self.touched.add(Part(MINUTES, minute))
        elif minute // 60 > int(now // 3600) - LIVE_HOURS:
            self._add_to_hour(minute // 60, version, deltas)
        place = (version, int(start_s // 60))
        windows = self._places.get(place)
        if windows is None:
            windows = self._places[place] = self._open_windows(version, start_s)
        for sums in windows:
            for index, delta in deltas:
                sums[index] += delta

    def _add_to_hour(self, hour: int, version: str, deltas: FigureDeltas) -> None:
        _add(self.hours.setdefault(hour, {}), version, deltas)
        self.touched.add(Part(HOURS, hour))

    def _open_windows(self, version: str, start_s: float) -> list[list[float]]:
        """Sums of the windows of an interaction's start that can still change, marked as changed."""
        found: list[list[float]] = []
        for name, length in WINDOWS_S.items():
            start = int(start_s // length) * length
            if start + length + KEPT_S[name] >= self.clock_s:
                sums = self.windows[name].setdefault(start, {})
                found.append(sums.setdefault(version, [0.0] * len(FIGURES)))
                self.changed.add((name, start, version))
                self.touched.add(Part(name, start))
        return found

    def stream_time(self, appended_s: float, claimed_s: float) -> float | None:
        """The stream time that a tick sets, or None where its clocks contradict each other.

        The broker's timestamp counts; the producer's clock alone never moves stream time. A jump
        needs both, as after an outage, so that no single wrong clock expires rows.
        """
        agree = abs(appended_s - claimed_s) <= JUMP_S
        if abs(appended_s - self.clock_s) > JUMP_S and not agree:
            return None
        if agree and self.clock_s > appended_s + AHEAD_S:
            self._places.clear()
            self.clock_s = self.emitted_s = appended_s
        return max(self.clock_s, appended_s)

    def tick(self, at_s: float) -> list[WindowKey]:
        """Move stream time on; returns the quality windows to emit now, in order."""
        self._places.clear()
        self.clock_s = max(self.clock_s, at_s)
        self._roll()
        if self.clock_s - self.emitted_s < QUALITY_EVERY_S:
            return []
        self.emitted_s = self.clock_s
        emit = sorted(self.changed)
        self.changed.clear()
        return emit

    def forget(self) -> None:
        """Drop windows and rollouts that can change no more; call after emitting."""
        now = self.clock_s
        self._places.clear()
        emitted_later = {(window, start) for window, start, _ in self.changed}
        for window, starts in self.windows.items():
            over = now - WINDOWS_S[window] - KEPT_S[window]
            for start in [start for start in starts if start < over]:
                if (window, start) not in emitted_later:
                    del starts[start]
                    self.touched.add(Part(window, start))
        if _forget_ended(now, self.scores, self.voter_scores):
            self.touched |= {SCORES, VOTER_SCORES}
        self._labels.clear()

    def _roll(self) -> None:
        oldest = int(self.clock_s // 60) - LIVE_MINUTES
        for minute in [minute for minute in self.minutes if minute < oldest]:
            versions = self.minutes.pop(minute)
            self.touched.add(Part(MINUTES, minute))
            for version, sums in versions.items():
                deltas = tuple((index, value) for index, value in enumerate(sums) if value)
                self._add_to_hour(minute // 60, version, deltas)
        last = int(self.clock_s // 3600) - LIVE_HOURS
        for hour in [hour for hour in self.hours if hour <= last]:
            del self.hours[hour]
            self.touched.add(Part(HOURS, hour))

    def live(self) -> dict[tuple[str, str], list[float]]:
        """(version, window) -> figures of what arrived in the window that ends now.

        The running minute counts in full, so a window of n minutes spans n to n + 1 of them.
        """
        minute = int(self.clock_s // 60)
        known = {
            version
            for kept in (self.minutes, self.hours)
            for versions in kept.values()
            for version in versions
        }
        found = {(version, name): [0.0] * len(FIGURES) for version in known for name in WINDOWS_S}
        for name, length in WINDOWS_S.items():
            for stamp, versions in self.minutes.items():
                if stamp >= minute - length // 60:
                    _merge(found, name, versions)
        for versions in self.hours.values():
            _merge(found, "1d", versions)
        return found

    def take_touched(self) -> set[Part]:
        """Parts that changed since this was last called."""
        self._places.clear()  # What they lead to changes again without a word.
        touched, self.touched = self.touched, set()
        return touched


def _add_score(
    scores: dict[ScoreSeries, list[float]], series: ScoreSeries, score: float, at_s: float
) -> None:
    sums = scores.setdefault(series, [0.0, 0, 0.0])
    sums[0] += score
    sums[1] += 1
    sums[2] = max(sums[2], at_s)


def _forget_ended(
    now_s: float,
    scores: dict[ScoreSeries, list[float]],
    voter_scores: dict[VoterScores, list[float]],
) -> bool:
    """Drop the series of rollouts without a new score; of one that goes on none, however old.

    Returns:
        Whether any was dropped.

    One that came back would begin at 0 again, which the judge takes for a copy that lags, and its
    label would pass to another voter with all that this one has.
    """
    newest: dict[str, float] = {}
    for (_, _, rollout, *_), (_, _, at_s) in (*scores.items(), *voter_scores.items()):
        newest[rollout] = max(newest.get(rollout, 0.0), at_s)
    ended = {name for name, at_s in newest.items() if name and at_s + ENDED_ROLLOUT_S < now_s}
    if ended:
        for series in [one for one in scores if one[2] in ended]:
            del scores[series]
        for voter in [one for one in voter_scores if one[2] in ended]:
            del voter_scores[voter]
    return bool(ended)


def _add(versions: Sums, version: str, deltas: FigureDeltas) -> None:
    sums = versions.get(version)
    if sums is None:
        sums = versions[version] = [0.0] * len(FIGURES)
    for index, delta in deltas:
        sums[index] += delta


def _merge(found: dict[tuple[str, str], list[float]], window: str, versions: Sums) -> None:
    for version, sums in versions.items():
        total = found[(version, window)]
        for index, value in enumerate(sums):
            total[index] += value
