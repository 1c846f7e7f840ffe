"""Scores that move away from those a reward model was published with."""

from __future__ import annotations

import random
import statistics

from prometheus_client import CollectorRegistry

from services.inference.metrics import InferenceMetrics
from services.inference.score_drift import FEW_SCORES, KEPT, ScoreDrift
from shared.contracts.events.versions import RewardRecord
from tests.unit.inference.test_scorer import reward
from tests.unit.training.builders import MODEL

RNG = random.Random(7)
KNOWN = [RNG.gauss(0, 1) for _ in range(400)]


def published(number: int = 1) -> RewardRecord:
    deciles = tuple(statistics.quantiles(KNOWN, n=10))
    changes = {"score_deciles": deciles, "metrics": {"tested": 200.0}}
    return reward(number).model_copy(update=changes)


def shown(metrics: InferenceMetrics) -> float:
    return metrics.score_drift.labels(MODEL)._value.get()


def test_scores_of_one_distribution_stand_still_and_higher_ones_have_moved() -> None:
    metrics = InferenceMetrics(CollectorRegistry())
    drift = ScoreDrift(metrics)
    drift.note(published(), [RNG.gauss(0, 1) for _ in range(500)])
    assert shown(metrics) < 0.1
    drift.note(published(), [RNG.gauss(1, 1) for _ in range(KEPT)])
    assert shown(metrics) > 0.5
    drift.note(published(2), [])
    assert shown(metrics) == 0.0, "a new reward model begins anew"


def test_few_scores_and_unknown_deciles_tell_nothing() -> None:
    metrics = InferenceMetrics(CollectorRegistry())
    far = [9.0] * (FEW_SCORES - 1)
    ScoreDrift(metrics).note(published(), far)
    assert shown(metrics) == 0.0
    ScoreDrift(metrics).note(reward(1), far * 3)
    assert shown(metrics) == 0.0
