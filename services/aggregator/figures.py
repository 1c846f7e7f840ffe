"""Figures: what feedback and signals add to the figures vector of their version. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Any

from services.aggregator import aggregates
from services.aggregator.contributions import FigureDeltas
from services.aggregator.rows import FeedbackEntry
from shared.contracts.events.feedback import (
    BAD_SCORE,
    GOOD_SCORE,
    RATINGS,
    FeedbackSubmitted,
    FeedbackType,
    satisfaction,
)
from shared.contracts.events.signals import SignalObserved, SignalType, implied_satisfaction

STEPS = 256
"""Implied satisfaction is rounded to 1/256, so that what is subtracted later leaves exactly nothing."""
_OF_SIGNAL: dict[str, int] = {
    SignalType.regenerate: aggregates.REGENERATED,
    SignalType.copy: aggregates.COPIED,
    SignalType.edit_kept: aggregates.EDITED,
    SignalType.abandon: aggregates.ABANDONED,
    SignalType.follow_up: aggregates.FOLLOWED_UP,
}
_SIGNALS = frozenset(SignalType)


def is_signal(entry: FeedbackEntry) -> bool:
    """Whether an entry is a signal, of a type that is known."""
    return entry.kind in _SIGNALS


def feedback_figures(feedback: FeedbackSubmitted) -> FigureDeltas:
    """What one feedback adds."""
    deltas: list[tuple[int, float]] = [(aggregates.FEEDBACK, 1)]
    score = feedback.score
    if feedback.type in RATINGS and score is not None:
        if score >= GOOD_SCORE:
            deltas.append((aggregates.POSITIVE, 1))
        elif score <= BAD_SCORE:
            deltas.append((aggregates.NEGATIVE, 1))
    if feedback.type is FeedbackType.text_correction:
        deltas.append((aggregates.CORRECTIONS, 1))
    if score is not None:
        deltas.append((aggregates.SCORED, 1))
        if score:
            deltas.append((aggregates.SCORE, score))
    return tuple(deltas)


def signal_figures(signal: SignalObserved) -> FigureDeltas:
    """What one signal adds; one of a type that is unknown adds nothing."""
    if signal.type not in _OF_SIGNAL:
        return ()
    deltas: list[tuple[int, float]] = [(_OF_SIGNAL[signal.type], 1)]
    if signal.value:
        deltas.append((aggregates.KEPT, _rounded(signal.value)))
    if signal.dissatisfied:
        deltas.append((aggregates.DISSATISFIED, 1))
    if signal.score is not None:
        deltas.append((aggregates.IMPLIED_COUNT, 1))
        if signal.score:
            deltas.append((aggregates.IMPLIED, _rounded(signal.score)))
    return tuple(sorted(deltas))


def paired_figures(entries: Iterable[FeedbackEntry]) -> tuple[int, FigureDeltas] | None:
    """Minute and figures of an answer that has both implied and explicit satisfaction, else None.

    Its x is the mean of what its signals imply, its y the mean of its scores. The minute is the
    first in which both were there; it follows from the entries alone, so that the figures of a set
    of entries are taken out of the minute that they were put into.
    """
    implied: list[tuple[float, int]] = []
    explicit: list[tuple[float, int]] = []
    for entry in entries:
        if entry.counted != "joined" or entry.body is None:
            continue
        score = _score(entry, entry.body)
        if score is not None:
            (implied if is_signal(entry) else explicit).append((score, entry.minute))
    if not implied or not explicit:
        return None
    x, y = (_rounded(fmean(score for score, _ in side)) for side in (implied, explicit))
    minute = max(min(minute for _, minute in side) for side in (implied, explicit))
    sums = zip(aggregates.PAIRED, (1, x, y, x * x, y * y, x * y), strict=True)
    return minute, tuple((index, value) for index, value in sums if value)


def difference(before: FigureDeltas, after: FigureDeltas) -> FigureDeltas:
    """What takes figures from one state to another."""
    sums = dict(after)
    for index, delta in before:
        sums[index] = sums.get(index, 0) - delta
    return tuple((index, delta) for index, delta in sorted(sums.items()) if delta)


def _score(entry: FeedbackEntry, body: dict[str, Any]) -> float | None:
    if is_signal(entry):
        return implied_satisfaction(body["type"], body["value"], body["dissatisfied"])
    return satisfaction(FeedbackType(body["type"]), body["value"])


def _rounded(score: float) -> float:
    return round(score * STEPS) / STEPS
