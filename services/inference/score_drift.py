"""Drift of a reward model's scores: those of late against those it was published with."""

from __future__ import annotations

import bisect
from collections import Counter, deque
from collections.abc import Iterable

from services.inference.metrics import InferenceMetrics
from shared.contracts.events.versions import RewardRecord
from shared.stability import stability_index

KEPT = 2_000
"""Newest scores of a reward model that are looked at."""
FEW_SCORES = 100
"""Scores below which no drift is told."""
BINS = 10
TESTED_SIDES = 2


class ScoreDrift:
    """Population stability index of each model's newest scores over its reward model's deciles."""

    def __init__(self, metrics: InferenceMetrics) -> None:
        self._metrics = metrics
        self._scores: dict[str, tuple[str, deque[float]]] = {}

    def note(self, record: RewardRecord, scores: Iterable[float]) -> None:
        """Take in what a model's newest reward model scored; those of an older one are dropped."""
        name, kept = self._scores.get(record.model, ("", deque[float]()))
        if name != record.name:
            kept = deque(maxlen=KEPT)
            self._scores[record.model] = record.name, kept
        kept.extend(scores)
        self._metrics.score_drift.labels(record.model).set(index(record, kept))


def index(record: RewardRecord, scores: deque[float]) -> float:
    """The index; 0 with few scores, or for a reward model whose deciles are not known."""
    tested = round(TESTED_SIDES * record.metrics.get("tested", 0.0))
    if len(scores) < FEW_SCORES or tested < FEW_SCORES or not record.score_deciles:
        return 0.0
    before = dict.fromkeys(range(BINS), tested // BINS)
    now = Counter(bisect.bisect_right(record.score_deciles, score) for score in scores)
    return stability_index(before, now)
