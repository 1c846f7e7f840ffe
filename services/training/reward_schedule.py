"""Retraining of the reward model by age, by drift of its pairs, and by accuracy on fresh votes. Pure.

A judge knows the pairs of its time. Where new ones have other categories or other lengths it is
asked about what it never saw, so the schedule asks for a new one before the next version needs it.
"""

# pyright: strict
from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import accumulate

from services.training.jobs import JobQueue
from services.training.reward_freshness import FreshAgreement, fallen
from shared.contracts.events.training import TrainingMethod, TrainingRequested
from shared.registry.versions import Registry
from shared.stability import stability_index

ACTOR = "reward-schedule"
BINS = 10
"""Bins of a length, each with as many of the known pairs."""
MIN_FRESH = 50
"""New pairs below which no drift is told: the index of fewer is chance."""
RETRY, MAX_RETRY = timedelta(days=1), timedelta(days=30)
"""Pause after a job of its own that ended without a reward model; each further one doubles it."""
GROWTH = 0.1
"""Judge's pairs beyond those of a job that was rejected, as a share of them, that the next one waits
for: the same data would be rejected again."""


@dataclass(frozen=True)
class PairShapes:
    """What is known of pairs without their texts: category and the chosen answer's characters."""

    categories: Counter[str] = field(default_factory=Counter[str])
    lengths: Counter[int] = field(default_factory=Counter[int])
    """How many pairs have each."""


@dataclass(frozen=True)
class RewardInputs:
    """What the decision looks at."""

    model: str
    judge_pairs: int
    min_judge_pairs: int
    every_days: float
    """Age at which a reward model is made anew; 0: age alone never does."""
    max_drift: float
    """Population stability index at which it is made anew; 0: drift never does."""
    known: PairShapes = field(default_factory=PairShapes)
    """Pairs of the newest reward model's time."""
    fresh: PairShapes = field(default_factory=PairShapes)
    """Pairs that came since."""
    agreement: FreshAgreement = field(default_factory=FreshAgreement)
    """With the fresh votes that were scored."""
    min_fresh_votes: int = 0
    """Fresh votes below which they say nothing."""
    seed: int = 0


def drift(known: PairShapes, fresh: PairShapes) -> dict[str, float]:
    """Population stability index of each feature; zeros with too few pairs on either side."""
    if min(known.categories.total(), fresh.categories.total()) < MIN_FRESH:
        return {"category": 0.0, "length": 0.0}
    edges = _edges(known.lengths)
    return {
        "category": stability_index(known.categories, fresh.categories),
        "length": stability_index(_binned(known.lengths, edges), _binned(fresh.lengths, edges)),
    }


def _edges(lengths: Counter[int]) -> list[int]:
    """Lengths that part the pairs into BINS alike."""
    ordered = sorted(lengths)
    until = list(accumulate(lengths[length] for length in ordered))
    places = (until[-1] * step // BINS for step in range(1, BINS))
    return sorted({ordered[bisect.bisect_right(until, place)] for place in places})


def _binned(lengths: Counter[int], edges: Sequence[int]) -> Counter[int]:
    binned = Counter[int]()
    for length, count in lengths.items():
        binned[bisect.bisect_right(edges, length)] += count
    return binned


@dataclass(frozen=True)
class RewardWait:
    """What the next reward model still lacks after jobs that made none."""

    days: float = 0.0
    pairs: int = 0
    """More pairs of the judge than the last one had."""

    def __str__(self) -> str:
        return (
            f"{self.days:.1f} days and {self.pairs} judge's pairs since one that was not published"
        )


def reward_wait(
    inputs: RewardInputs, queue: JobQueue, registry: Registry, now: datetime
) -> RewardWait:
    """Pause and growth of the data that jobs without a reward model ask for.

    The distance in time counts in both directions, so a clock that was set back costs one more
    pause at most.
    """
    known = registry.rewards(inputs.model)
    if not known:
        return RewardWait()
    ends = queue.fruitless(inputs.model, TrainingMethod.reward, ACTOR, known[-1].created_at)
    if not ends:
        return RewardWait()
    last = ends[-1]
    doublings = min(len(ends) - 1, MAX_RETRY // RETRY)
    pause = min(RETRY * 2**doublings, MAX_RETRY)
    left = max(timedelta(), pause - abs(now - last.at))
    had = int(last.metrics.get("judge_pairs", 0))
    wanted = had + math.ceil(had * GROWTH)
    return RewardWait(left / timedelta(days=1), max(0, wanted - inputs.judge_pairs))


def decide_reward(
    inputs: RewardInputs, queue: JobQueue, registry: Registry, now: datetime
) -> tuple[TrainingRequested | None, str]:
    """The job to ask for, or None, and why."""
    model = inputs.model
    known = registry.rewards(model)
    if not known:
        return None, "no reward model yet: the first one comes with a version's training"
    newest = known[-1]
    age = (now - newest.created_at) / timedelta(days=1)
    moved = {name: value for name, value in drift(inputs.known, inputs.fresh).items() if value}
    drifted = 0 < inputs.max_drift <= max(moved.values(), default=0.0)
    if drifted:
        reason = "drift since " + newest.name + ": " + _shown(moved)
    elif fell := fallen(inputs.agreement, newest, inputs.min_fresh_votes):
        reason = fell
    elif 0 < inputs.every_days <= age:
        reason = f"{newest.name} is {age:.0f} days old"
    else:
        return None, "the reward model is young, and neither its pairs nor its accuracy have moved"
    if inputs.judge_pairs < inputs.min_judge_pairs:
        return None, f"{inputs.judge_pairs} of {inputs.min_judge_pairs} judge's pairs"
    if queue.unfinished(model):
        return None, "a job of this model is not finished"
    wait = reward_wait(inputs, queue, registry, now)
    if wait != RewardWait():
        return None, str(wait)
    job = TrainingRequested(
        job_id=queue.next_id(model, TrainingMethod.reward, ACTOR, newest.name),
        model=model,
        method=TrainingMethod.reward,
        seed=inputs.seed,
        reason=reason,
        actor=ACTOR,
        requested_at=now,
    )
    return job, reason


def _shown(moved: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in sorted(moved.items()))
