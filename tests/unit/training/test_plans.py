"""Plans: a training starts when volume, cadence and coverage are met, and says what is missing."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from services.training.jobs import JobQueue
from services.training.plans import PLANS, CollectionPlan
from services.training.settings import TrainingSettings
from services.training.sides import DatasetRules
from services.training.trigger import PairCounter, TriggerInputs, decide
from shared.contracts.events.base import Context
from shared.contracts.events.versions import Lifecycle
from tests.unit.training.builders import MODEL, NOW, pair_event, registry

STABLE = registry(v1_0=Lifecycle.stable)
ENOUGH = TriggerInputs(
    model=MODEL, new_pairs=200, min_pairs=200, judge_pairs=30, min_judge_pairs=30,
    last_dataset="", seed=3,
)  # fmt: skip


@pytest.mark.parametrize(("name", "figures"), [
    ("startup", (100, 7, 100)), ("growth", (200, 14, 300)), ("mature", (300, 30, 500)),
])  # fmt: skip
def test_the_plans_are_those_of_the_requirement(
    name: str, figures: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATCHET_TRAINING_PLAN", name)
    monkeypatch.setenv("RATCHET_TRAINING_PLAN_CATEGORIES", "creative, comparison")
    plan = TrainingSettings().collection_plan
    assert (plan.pairs, plan.every_days, plan.weekly) == figures
    assert (plan.categories, plan.per_category) == (("creative", "comparison"), 10)


def test_without_a_plan_the_number_of_pairs_alone_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_TRAINING_MIN_PAIRS", "40")
    plan = TrainingSettings().collection_plan
    assert (plan.pairs, plan.days_left(NOW, NOW), plan.missing_by_category({})) == (40, 0.0, {})


def test_the_cadence_counts_from_the_last_version() -> None:
    plan = PLANS["growth"]
    assert plan.days_left(None, NOW) == 0.0
    assert plan.days_left(NOW, NOW + timedelta(days=3)) == 11.0
    assert plan.days_left(NOW, NOW + timedelta(days=14)) == 0.0


def test_coverage_is_what_each_category_lacks() -> None:
    plan = CollectionPlan(pairs=1, categories=("creative", "comparison"), per_category=10)
    counted = {"creative": 12, "comparison": 4, "other": 99}
    assert plan.missing_by_category(counted) == {"comparison": 6}


@pytest.mark.parametrize(("lacks", "why"), [
    ({"new_pairs": 150}, "150 of 200 new pairs"),
    ({"days_left": 2.5}, "2.5 days until the plan's next training"),
    ({"category_pairs_missing": 6}, "6 pairs of the plan's categories are missing"),
])  # fmt: skip
def test_no_training_starts_while_one_of_the_three_is_missing(
    lacks: dict[str, float], why: str
) -> None:
    inputs = replace(ENOUGH, **lacks)
    assert decide(inputs, JobQueue(), STABLE, NOW) == (None, why)
    assert sum(inputs.missing.values()) > 0
    assert decide(ENOUGH, JobQueue(), STABLE, NOW)[0] is not None
    assert sum(ENOUGH.missing.values()) == 0


def test_new_pairs_are_counted_by_category() -> None:
    counter = PairCounter(MODEL, DatasetRules(judge_share=0))
    for number in range(6):
        category = "creative" if number < 4 else ""
        event = pair_event(number, context=Context(category=category))
        counter.apply(event, "preferences/0", number)
    counter.forget({"preferences/0": 1})
    assert counter.by_category() == {"creative": 3, "": 2}
    assert len(counter) == 5
