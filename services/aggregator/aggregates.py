"""The aggregates of a partition: counters, live minutes and quality windows, and the offsets it holds.

They are a sum of contributions, so the order of contributions never matters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import orjson

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
from services.aggregator.errors import UnknownFormat
from shared.voters import VoterKind, VoterLabels

FORMAT = 5
"""Of a checkpoint and the rows it covers; it rises whenever an older aggregator could not read a
newer one's, or the reverse. 2: the rated answers to a prompt are kept without its messages. 3: a
feedback's row says when its revision was received. 4: signals, sessions and audiences are counted. 5:
scores are counted by tenant and API key, too."""
READ_FORMATS = (1, 2, 3, 4, FORMAT)
AUDIENCE_FORMAT = 4
VOTER_FORMAT = 5
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
    minutes: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    hours: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    windows: dict[WindowKey, list[float]] = field(default_factory=dict)
    changed: set[WindowKey] = field(default_factory=set)
    _places: dict[tuple[str, int], list[list[float]]] = field(
        default_factory=dict, repr=False, compare=False
    )
    """(version, minute of an interaction's start) -> sums of its windows, all marked as changed.
    Until the next tick, so that the events of one minute look their windows up once."""
    _labels: dict[str, VoterLabels] = field(default_factory=dict, repr=False, compare=False)
    """By rollout: whoever scores with however many keys, a checkpoint holds a few series."""
    dropped: list[str] = field(default_factory=list)
    """Keys of rows that are deleted right after this checkpoint, should that be lost."""

    def apply(self, contributions: Iterable[Contribution]) -> None:
        """Add what one event contributes."""
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
            elif kind is OutcomeCounted:
                name = cast("OutcomeCounted", contribution).outcome
                self.outcomes[name] = self.outcomes.get(name, 0) + 1
            elif kind is FeedbackCounted:
                version, told = cast("FeedbackCounted", contribution)
                said = (version, told)
                self.feedback[said] = self.feedback.get(said, 0) + 1
            elif kind is ScoreCounted:
                self._count_score(cast("ScoreCounted", contribution))
            else:
                chosen, rejected, result = cast("VoteCounted", contribution)
                vote = (chosen, rejected, result)
                self.votes[vote] = self.votes.get(vote, 0) + 1

    def _count_score(self, counted: ScoreCounted) -> None:
        version, arm, rollout, segment, score, at_s, tenant, api_key = counted
        _add_score(self.scores, (version, arm, rollout, segment), score, at_s)
        voters: tuple[tuple[VoterKind, str], ...] = (("tenant", tenant), ("key", api_key))
        for kind, voter in voters:
            if rollout and voter:
                label = self._labels_of(rollout).bounded(kind, voter)
                _add_score(self.voter_scores, (version, arm, rollout, kind, label), score, at_s)

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
        elif minute // 60 > int(now // 3600) - LIVE_HOURS:
            _add(self.hours.setdefault(minute // 60, {}), version, deltas)
        place = (version, int(start_s // 60))
        windows = self._places.get(place)
        if windows is None:
            windows = self._places[place] = self._open_windows(version, start_s)
        for sums in windows:
            for index, delta in deltas:
                sums[index] += delta

    def _open_windows(self, version: str, start_s: float) -> list[list[float]]:
        """Sums of the windows of an interaction's start that can still change, marked as changed."""
        found: list[list[float]] = []
        for name, length in WINDOWS_S.items():
            start = int(start_s // length) * length
            if start + length + KEPT_S[name] >= self.clock_s:
                key = (name, start, version)
                found.append(self.windows.setdefault(key, [0.0] * len(FIGURES)))
                self.changed.add(key)
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
        for key in [
            key for key in self.windows if key[1] + WINDOWS_S[key[0]] + KEPT_S[key[0]] < now
        ]:
            if key not in self.changed:
                del self.windows[key]
        _forget_ended(now, self.scores, self.voter_scores)
        self._labels.clear()

    def _roll(self) -> None:
        oldest = int(self.clock_s // 60) - LIVE_MINUTES
        for minute in [minute for minute in self.minutes if minute < oldest]:
            versions = self.minutes.pop(minute)
            for version, sums in versions.items():
                deltas = tuple((index, value) for index, value in enumerate(sums) if value)
                _add(self.hours.setdefault(minute // 60, {}), version, deltas)
        last = int(self.clock_s // 3600) - LIVE_HOURS
        for hour in [hour for hour in self.hours if hour <= last]:
            del self.hours[hour]

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

    def encode(self) -> bytes:
        """The aggregates as a checkpoint."""
        return orjson.dumps(
            [
                FORMAT,
                self.offsets,
                self.clock_s,
                self.emitted_s,
                [[*key, count] for key, count in self.feedback.items()],
                [[key, sums] for key, sums in self.scores.items()],
                [[*key, count] for key, count in self.votes.items()],
                self.outcomes,
                [[minute, versions] for minute, versions in self.minutes.items()],
                [[hour, versions] for hour, versions in self.hours.items()],
                [[key, sums] for key, sums in self.windows.items()],
                sorted(self.changed),
                self.dropped,
                [[*key, count] for key, count in self.audience.items()],
                [[key, sums] for key, sums in self.voter_scores.items()],
            ]
        )

    @classmethod
    def decode(cls, stored: bytes) -> Aggregates:
        """The aggregates of a checkpoint.

        Raises:
            UnknownFormat: another generation of the aggregator wrote it.

        """
        fields: list[Any] = orjson.loads(stored)
        known, *fields = fields
        if known not in READ_FORMATS:
            raise UnknownFormat(
                f"checkpoint: this aggregator reads format {' and '.join(map(str, READ_FORMATS))}, "
                f"not {str(known)[:20]}; run the "
                "version that wrote it, or drop the table's changelog topic, the group's offsets and the "
                "workers' directories to count again from the log"
            )
        audience: list[Any] = fields[12] if known >= AUDIENCE_FORMAT else []
        voter_scores: list[Any] = fields[13] if known >= VOTER_FORMAT else []
        return cls(
            offsets=fields[0],
            clock_s=fields[1],
            emitted_s=fields[2],
            feedback={(version, kind): count for version, kind, count in fields[3]},
            scores={tuple(key): sums for key, sums in fields[4]},  # type: ignore[misc]
            voter_scores={tuple(key): sums for key, sums in voter_scores},  # type: ignore[misc]
            votes={(left, right, choice): count for left, right, choice, count in fields[5]},
            outcomes=fields[6],
            minutes=_widened(fields[7]),
            hours=_widened(fields[8]),
            windows={tuple(key): _wide(sums) for key, sums in fields[9]},  # type: ignore[misc]
            changed={tuple(key) for key in fields[10]},  # type: ignore[misc]
            dropped=fields[11],
            audience={(what, *key): count for what, *key, count in audience},  # type: ignore[misc]
        )


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
) -> None:
    """Drop the series of rollouts without a new score; of one that goes on none, however old.

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


def _wide(sums: list[float]) -> list[float]:
    """A figures vector of a format that had fewer of them."""
    return [*sums, *[0.0] * (len(FIGURES) - len(sums))]


def _widened(stored: list[tuple[int, dict[str, list[float]]]]) -> dict[int, dict[str, list[float]]]:
    return {
        stamp: {version: _wide(sums) for version, sums in versions.items()}
        for stamp, versions in stored
    }


def _add(versions: dict[str, list[float]], version: str, deltas: FigureDeltas) -> None:
    sums = versions.get(version)
    if sums is None:
        sums = versions[version] = [0.0] * len(FIGURES)
    for index, delta in deltas:
        sums[index] += delta


def _merge(
    found: dict[tuple[str, str], list[float]], window: str, versions: dict[str, list[float]]
) -> None:
    for version, sums in versions.items():
        total = found[(version, window)]
        for index, value in enumerate(sums):
            total[index] += value
