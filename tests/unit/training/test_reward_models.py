"""Reward models as a product: published with their measures, their gain, and shown as metrics."""

from __future__ import annotations

import html
import json
import math
import shutil
from pathlib import Path

import pytest

from services.training.reward_models import show
from services.training.trainers.agreement import (
    agreement,
    by_category,
    calibration_error,
    predecessor_judges,
)
from services.training.trainers.job import read_rows
from shared.contracts.events.training import RunPhase, TrainingMethod
from shared.contracts.topics import PREFERENCES, VERSIONS
from shared.registry.versions import Registry
from tests.unit.training.builders import MODEL, example_event, pair_event, request
from tests.unit.training.harness import TrainingHarness


def registry(harness: TrainingHarness) -> Registry:
    made = Registry()
    for record in harness.log.all(VERSIONS):
        made.apply(record.key, record.value)
    return made


def compared(*, own: float, before: float) -> dict[str, float]:
    """A judge beside its predecessor on the same 80 votes."""
    return {
        "judge_compared": 80.0,
        "judge_compared_agreed": own,
        "judge_predecessor_agreed": before,
    }


async def test_a_run_s_judge_is_published_with_its_measures(harness: TrainingHarness) -> None:
    await harness.run(request())
    (record,) = registry(harness).rewards(MODEL)
    assert (record.name, record.base, record.predecessor) == (f"{MODEL}-reward-v1", "base", "")
    assert record.metrics["accuracy"] == 0.9
    assert record.metrics["accuracy_low"] < 0.9 < record.metrics["accuracy_high"]
    assert (record.metrics["train_loss"], record.metrics["calibration_error"]) == (0.4, 0.05)
    assert "accuracy_gain" not in record.metrics
    assert record.accuracy_by_category == {"billing": 0.75}
    assert record.score_deciles == tuple(number / 10 for number in range(1, 10))


async def test_the_next_one_s_gain_is_over_its_predecessor_on_the_same_pairs(
    harness: TrainingHarness,
) -> None:
    await harness.run(request("first", method=TrainingMethod.reward))
    harness.plan({"judge": compared(own=70.0, before=62.0)})
    outcome = await harness.run(request("second", method=TrainingMethod.reward))
    assert outcome.message == f"{MODEL}-reward-v2: published"
    record = registry(harness).rewards(MODEL)[-1]
    assert record.predecessor == f"{MODEL}-reward-v1"
    assert record.metrics["accuracy_gain"] == pytest.approx(0.1)
    assert harness.trainer_job("second")["predecessor"]
    show(registry(harness), harness.metrics)
    shown = harness.metrics.reward.labels(MODEL, "accuracy_gain")._value.get()
    assert shown == pytest.approx(0.1)


async def test_the_judge_is_the_one_that_agrees_with_more_of_the_same_votes(
    harness: TrainingHarness,
) -> None:
    await harness.run(request("first"))
    harness.plan({"judge": compared(own=56.0, before=71.0)})
    await harness.run(request("second"))
    made = harness.records()[-1]
    assert made.job_id == "second"
    assert made.metrics["judge_is_predecessor"] == 1.0
    assert made.metrics["judge_accuracy"] == pytest.approx(71 / 80)
    assert made.judged_with["reward_model"] == f"{MODEL}-reward-v1"
    why = (
        f"judged by {MODEL}-reward-v1, which agrees with 71 of 80 votes that neither learned from, "
        "the job's own with 56"
    )
    (check,) = (one for one in made.gate.checks if one.name == "judge")
    assert why in check.detail
    folder = harness.published(made)
    assert html.escape(why) in (folder / "report.html").read_text()
    assert json.loads((folder / "evaluation.json").read_bytes())["judge"] == why
    assert [one.name for one in registry(harness).rewards(MODEL)] == [f"{MODEL}-reward-v1"]
    for judge in ("own", "predecessor"):
        assert harness.metrics.judges.labels(MODEL, judge)._value.get() == 1.0


async def test_a_new_reward_model_that_agrees_with_fewer_votes_is_not_published(
    harness: TrainingHarness,
) -> None:
    await harness.run(request("first", method=TrainingMethod.reward))
    harness.plan({"judge": compared(own=56.0, before=71.0)})
    outcome = await harness.run(request("second", method=TrainingMethod.reward))
    assert outcome.phase is RunPhase.rejected
    assert outcome.message == (
        "not published: it agrees with 56 of 80 votes that neither learned from, "
        f"{MODEL}-reward-v1 with 71; that one stays; collect more votes"
    )
    assert [one.name for one in registry(harness).rewards(MODEL)] == [f"{MODEL}-reward-v1"]


async def test_the_judge_is_compared_on_pairs_that_its_predecessor_did_not_learn_from(
    harness: TrainingHarness,
) -> None:
    await harness.run(request("first"))
    learned = Path(harness.trainer_job("first")["data"]) / "judge.jsonl"
    await harness.run(request("second"))
    told = harness.trainer_job("second")
    assert read_rows(Path(told["predecessor_pairs"])) == read_rows(learned)

    shutil.rmtree(harness.folder / "datasets")
    one_more = pair_event(900)
    await harness.log.publish(PREFERENCES, key="k", event=one_more, event_id="one more")
    await harness.run(request("third"))
    told = harness.trainer_job("third")
    assert (told["predecessor"], told["predecessor_pairs"]) == ("", ""), "nobody knows what it saw"


@pytest.mark.parametrize(
    ("own", "before", "judges"),
    [
        (530.0, 556.0, True),
        (718.0, 705.0, False),
        (700.0, 700.0, False),
        (math.nan, 500.0, True),
        (None, 500.0, True),
        (500.0, math.nan, False),
        (500.0, None, False),
        (0.0, 0.0, False),
        (None, None, False),
    ],
)
def test_more_votes_decide_who_judges_and_the_job_s_own_does_among_equals(
    own: float | None, before: float | None, *, judges: bool
) -> None:
    figures = {"judge_compared_agreed": own, "judge_predecessor_agreed": before}
    known = {name: value for name, value in figures.items() if value is not None}
    assert predecessor_judges(known) is judges


async def test_a_judge_no_better_than_chance_is_not_published(harness: TrainingHarness) -> None:
    harness.plan({"judge": {"judge_agreed": 52.0}})
    outcome = await harness.run(request(method=TrainingMethod.reward))
    assert outcome.phase is RunPhase.rejected
    assert "collect more votes" in outcome.message
    assert registry(harness).rewards(MODEL) == ()


async def test_a_product_of_thumbs_alone_has_its_reward_model_made_anew(
    harness: TrainingHarness,
) -> None:
    asked = request(model="thumbs", base="base", method=TrainingMethod.reward)
    for number in range(100):
        event = example_event(number).model_copy(
            update={
                "model": "thumbs",
                "label": number % 2 == 0,
                "completion": f"an answer that somebody rated {number}",
                "raters": (f"rater-{number}",),
            }
        )
        await harness.log.publish(PREFERENCES, key="k", event=event, event_id=f"thumb-{number}")
    outcome = await harness.run(asked, method="kto")
    assert outcome.message == "thumbs-reward-v1: published"


def test_a_sure_and_right_judge_is_calibrated_and_a_sure_and_wrong_one_is_not() -> None:
    assert calibration_error([20.0] * 10) == pytest.approx(0.0, abs=1e-6)
    assert calibration_error([-20.0] * 10) == pytest.approx(1.0, abs=1e-6)
    margin = math.log(3)  # a chance of 75 %
    assert calibration_error([margin] * 3 + [-margin]) == pytest.approx(0.0)
    assert calibration_error([margin] * 2 + [-margin] * 2) == pytest.approx(0.25)
    assert math.isnan(calibration_error([]))
    assert math.isnan(calibration_error([math.nan]))


def test_agreement_is_counted_by_category() -> None:
    assert agreement([1.0, -1.0, 0.0]) == 1.0
    assert math.isnan(agreement([math.nan]))
    assert by_category(["a", "a", "b", ""], [1.0, -1.0, 2.0, 3.0]) == {
        "a": {"agreed": 1, "tested": 2},
        "b": {"agreed": 1, "tested": 1},
    }
