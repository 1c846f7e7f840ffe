"""Retraining trigger: decides whether a training job starts by itself. Pure.

Two replicas that see the same log ask for the same job_id, and a job_id is one job.
"""

# pyright: strict
from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.training.dataset import DatasetRules, is_held_out, pair_of, refusal
from services.training.jobs import JobQueue
from services.training.snapshot import Offsets
from shared.contracts.events.base import Event
from shared.contracts.events.preferences import PreferencePair, PreferenceRetracted
from shared.contracts.events.training import TrainingMethod, TrainingRequested
from shared.contracts.events.versions import Lifecycle
from shared.registry.versions import Registry

ACTOR = "schedule"
PAUSES = (timedelta(minutes=1), timedelta(minutes=10))
"""Waited after the first and the second of its jobs that failed: what broke may mend itself."""
MAX_FAILURES = len(PAUSES) + 1
"""Jobs of its own that may fail, while nobody's job of the model ends otherwise, before it leaves
the matter to people."""

REJECTED_PAUSE_SHARE = 0.25
"""Share of `min_pairs` that must be new since a snapshot whose candidates were rejected, as the
same data would be rejected again."""

_ON_THE_WAY = frozenset({Lifecycle.registered, Lifecycle.shadow, Lifecycle.canary})


class PairCounter:
    """Counts one model's trainable pairs that no version's snapshot has yet."""

    def __init__(self, model: str, rules: DatasetRules) -> None:
        self._model = model
        self._rules = rules
        self._pairs: dict[str, tuple[str, int]] = {}
        self._judged: set[str] = set()
        self._heldout: set[str] = set()

    def apply(self, event: Event, place: str, offset: int) -> None:
        """Fold one event of `preferences.v1` that came from `place` (topic/partition)."""
        match event:
            case PreferencePair() if event.model == self._model:
                if refusal(pair_of(event), self._rules) is None:
                    if event.panel:
                        self._judged.add(event.pair_id)
                    else:
                        self._pairs[event.pair_id] = (place, offset)
                        if is_held_out(pair_of(event).prompt, self._rules):
                            self._heldout.add(event.pair_id)
            case PreferenceRetracted():
                self._pairs.pop(event.pair_id, None)
                self._judged.discard(event.pair_id)
                self._heldout.discard(event.pair_id)
            case _:
                pass

    def forget(self, offsets: Offsets) -> None:
        """Drop the pairs a snapshot up to these offsets has."""
        self._pairs = {
            pair_id: (place, offset)
            for pair_id, (place, offset) in self._pairs.items()
            if offset >= offsets.get(place, 0)
        }

    def __len__(self) -> int:
        return len(self._pairs)

    def since(self, offsets: Offsets) -> int:
        """How many of them a snapshot up to these offsets does not have."""
        return sum(offset >= offsets.get(place, 0) for place, offset in self._pairs.values())

    @property
    def heldout(self) -> int:
        """How many trainable pairs are held out for the evaluation, old ones included."""
        return len(self._heldout)

    @property
    def judged(self) -> int:
        """How many pairs of the judge's panel there are, old ones included."""
        return len(self._judged)


@dataclass(frozen=True)
class TriggerInputs:
    """What the decision looks at."""

    model: str
    new_pairs: int
    min_pairs: int
    judge_pairs: int
    min_judge_pairs: int
    last_dataset: str
    seed: int
    heldout_pairs: int = 1
    fresh_pairs: int = 0
    """Pairs that came after the newest snapshot, whatever became of its job."""

    @property
    def missing(self) -> dict[str, int]:
        """Rows that the next training by itself still lacks, by kind; empty where it is off."""
        if self.min_pairs <= 0:
            return {}
        return {
            "pairs": max(0, self.min_pairs - self.new_pairs),
            "judge_pairs": max(0, self.min_judge_pairs - self.judge_pairs),
            "heldout_pairs": max(0, 1 - self.heldout_pairs),
        }


def decide(
    inputs: TriggerInputs, queue: JobQueue, registry: Registry, now: datetime
) -> tuple[TrainingRequested | None, str]:
    """The job to ask for, or None, and why.

    Args:
        inputs: Pairs, limits and the newest snapshot.
        queue: All jobs and how they ended.
        registry: All versions.
        now: The time of day, aware.

    """
    model, need = inputs.model, inputs.min_pairs
    if need <= 0:
        return None, "off: the setting is 0"
    if inputs.new_pairs < need:
        return None, f"{inputs.new_pairs} of {need} new pairs"
    if inputs.judge_pairs < inputs.min_judge_pairs:
        return None, f"{inputs.judge_pairs} of {inputs.min_judge_pairs} judge's pairs"
    if not inputs.heldout_pairs:
        return None, "no pair is held out for the evaluation"
    again = math.ceil(need * REJECTED_PAUSE_SHARE)
    rejected = queue.last_rejected(model, TrainingMethod.dpo, ACTOR)
    if rejected and inputs.fresh_pairs < again:
        return None, f"{inputs.fresh_pairs} of {again} pairs since the last job, which was rejected"
    if queue.unfinished(model):
        return None, "a job of this model is not finished"
    waits = _waits(queue.trailing_failures(model, ACTOR), now)
    if waits:
        return None, waits
    parent = registry.stable(model)
    if parent is None:
        return None, "no stable version to go on from"
    for version in registry.versions(model):
        if version.record.gate.released and version.lifecycle in _ON_THE_WAY:
            return None, f"{version.record.version} is on its way to traffic"
    asked = queue.count(model, TrainingMethod.dpo, ACTOR)
    name = f"ratchet/{model}/{inputs.last_dataset}/{asked}"
    job = TrainingRequested(
        job_id=str(uuid.uuid5(uuid.NAMESPACE_URL, name)),
        model=model,
        method=TrainingMethod.dpo,
        parent=parent.record.version,
        seed=inputs.seed,
        reason=f"{inputs.new_pairs} new pairs since {inputs.last_dataset or 'the beginning'}",
        actor=ACTOR,
        requested_at=now,
    )
    return job, job.reason


def _waits(failures: Sequence[datetime], now: datetime) -> str:
    """Why failures, newest first, keep the schedule from asking; empty where they do not.

    The distance counts in both directions, so a clock that was set back costs one more pause
    at most.
    """
    count = len(failures)
    if count >= MAX_FAILURES:
        return (
            f"{count} scheduled jobs failed in a row; it goes on once a job asked for by hand "
            "does not fail"
        )
    if count and abs(now - failures[0]) < PAUSES[count - 1]:
        again = failures[0] + PAUSES[count - 1]
        return f"the last scheduled job failed; not before {again:%H:%M:%S} UTC"
    return ""
