"""When the reward model is made anew: by age, and by drift of the pairs beyond chance."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from datetime import timedelta

from services.training.jobs import JobQueue
from services.training.reward_schedule import (
    ACTOR,
    MAX_RETRY,
    RETRY,
    PairShapes,
    RewardInputs,
    RewardWait,
    decide_reward,
    drift,
    reward_wait,
)
from services.training.sides import DatasetRules
from services.training.trigger import PairCounter
from shared.contracts.events.base import Context
from shared.contracts.events.training import RunPhase, TrainingMethod, TrainingProgress
from shared.contracts.events.versions import reward_key
from shared.registry.versions import Registry
from tests.unit.training.builders import MODEL, NOW, pair_event, reward_record

QUIET = RewardInputs(model=MODEL, judge_pairs=30, min_judge_pairs=30, every_days=30, max_drift=0.2)


def pairs(count: int, *, long: bool = False, seed: int = 0) -> PairShapes:
    rng = random.Random(seed)
    lengths = [int(rng.lognormvariate(6 if long else 5, 0.5)) for _ in range(count)]
    return PairShapes(Counter(rng.choices("abc", k=count)), Counter(lengths))


def rewarded() -> Registry:
    made = Registry()
    record = reward_record()
    made.apply(reward_key(record.name), record.to_json())
    return made


def test_two_samples_of_one_distribution_have_not_drifted() -> None:
    found = [drift(pairs(400, seed=seed), pairs(60, seed=1000 + seed)) for seed in range(50)]
    assert max(max(indices.values()) for indices in found) < 0.2


def test_other_lengths_and_other_categories_are_seen_and_few_pairs_are_not() -> None:
    known = pairs(400)
    assert drift(known, pairs(60, long=True))["length"] > 0.5
    assert drift(known, PairShapes(Counter(new=60), pairs(60).lengths))["category"] > 1
    assert drift(known, PairShapes(Counter(new=49), pairs(49).lengths)) == {
        "category": 0.0,
        "length": 0.0,
    }


def test_an_old_one_is_made_anew_and_a_young_one_is_not() -> None:
    job, _ = decide_reward(QUIET, JobQueue(), rewarded(), NOW + timedelta(days=29))
    assert job is None
    job, why = decide_reward(QUIET, JobQueue(), rewarded(), NOW + timedelta(days=31))
    assert job is not None
    assert (job.method, job.actor) == (TrainingMethod.reward, ACTOR)
    assert why == f"{MODEL}-reward-v1 is 31 days old"


def test_drift_makes_a_young_one_anew_and_names_what_moved() -> None:
    moved = replace(QUIET, known=pairs(400), fresh=pairs(100, long=True))
    job, why = decide_reward(moved, JobQueue(), rewarded(), NOW + timedelta(days=1))
    assert job is not None
    assert "length" in why
    off = replace(moved, max_drift=0)
    assert decide_reward(off, JobQueue(), rewarded(), NOW + timedelta(days=1))[0] is None


def test_it_waits_for_data_for_another_job_and_after_one_that_made_none() -> None:
    late = NOW + timedelta(days=31)
    assert decide_reward(replace(QUIET, judge_pairs=29), JobQueue(), rewarded(), late)[0] is None
    assert decide_reward(QUIET, JobQueue(), Registry(), late)[0] is None
    queue = JobQueue()
    first, _ = decide_reward(QUIET, queue, rewarded(), late)
    assert first is not None
    queue.put(first)
    assert decide_reward(QUIET, queue, rewarded(), late)[1] == "a job of this model is not finished"
    queue.put(
        TrainingProgress(
            job_id=first.job_id,
            model=MODEL,
            method=TrainingMethod.reward,
            phase=RunPhase.rejected,
            at=late,
        )
    )
    assert decide_reward(QUIET, queue, rewarded(), late + RETRY / 2)[0] is None
    second, _ = decide_reward(QUIET, queue, rewarded(), late + RETRY)
    assert second is not None
    assert second.job_id != first.job_id


def test_one_that_was_rejected_is_tried_again_with_more_data_after_pauses_that_double() -> None:
    queue, now, grown = JobQueue(), NOW + timedelta(days=31), QUIET
    pauses: list[timedelta] = []
    for judge_pairs in (100, 120, 140, 160, 190, 220, 250):
        grown = replace(QUIET, judge_pairs=judge_pairs)
        job, _ = decide_reward(grown, queue, rewarded(), now)
        assert job is not None
        queue.put(job.model_copy(update={"requested_at": now}))
        queue.put(
            TrainingProgress(
                job_id=job.job_id,
                model=MODEL,
                method=TrainingMethod.reward,
                phase=RunPhase.rejected,
                metrics={"judge_pairs": float(judge_pairs)},
                at=now,
            )
        )
        later = now + MAX_RETRY
        assert decide_reward(grown, queue, rewarded(), later)[0] is None, "the same data"
        assert reward_wait(grown, queue, rewarded(), later).pairs == round(judge_pairs / 10)
        more = replace(QUIET, judge_pairs=1000)
        pauses.append(timedelta(days=reward_wait(more, queue, rewarded(), now).days))
        now += pauses[-1]
        assert reward_wait(more, queue, rewarded(), now) == RewardWait()
    assert pauses == [RETRY * days for days in (1, 2, 4, 8, 16, 30, 30)]


def test_pairs_of_before_and_since_are_told_apart_by_their_offsets() -> None:
    counter = PairCounter(MODEL, DatasetRules())
    for number in range(4):
        event = pair_event(number, context=Context(category="old" if number < 3 else "new"))
        counter.apply(event, "ratchet.preferences.v1/0", number)
    known, fresh = counter.shapes({"ratchet.preferences.v1/0": 3})
    assert known.categories == {"old": 3}
    assert fresh.categories == {"new": 1}
    assert fresh.lengths == {len("a good answer 3"): 1}
