"""When training starts by itself: enough new pairs, and nothing unfinished in the way. Pure.

Two replicas that see the same log ask for the same job_id, and a job_id is one job.
"""

# pyright: strict
from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

from services.training.dataset import Rules, pair_of, refusal
from services.training.jobs import JobBook
from services.training.snapshot import Offsets
from shared.contracts.events import (
    Event,
    PreferencePair,
    PreferenceRetracted,
    TrainingMethod,
    TrainingRequested,
)
from shared.registry.versions import Lifecycle, Registry

ACTOR = "schedule"
MAX_FAILURES = 3
"""Jobs of its own that may fail one after another before it leaves the matter to people."""

_ON_THE_WAY = frozenset({Lifecycle.registered, Lifecycle.shadow, Lifecycle.canary})


class PairCounter:
    """Counts one model's trainable pairs that a snapshot does not have yet."""

    def __init__(self, model: str, rules: Rules) -> None:
        self._model = model
        self._rules = rules
        self._pairs: dict[str, tuple[str, int]] = {}
        self._judged: set[str] = set()

    def apply(self, event: Event, place: str, offset: int) -> None:
        """Fold one event of `preferences.v1` that came from `place` (topic/partition)."""
        match event:
            case PreferencePair() if event.model == self._model:
                if refusal(pair_of(event), self._rules) is None:
                    if event.panel:
                        self._judged.add(event.pair_id)
                    else:
                        self._pairs[event.pair_id] = (place, offset)
            case PreferenceRetracted():
                self._pairs.pop(event.pair_id, None)
                self._judged.discard(event.pair_id)
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

    @property
    def judged(self) -> int:
        """How many pairs of the judge's panel there are, old ones included."""
        return len(self._judged)


@dataclass(frozen=True)
class Situation:
    """What the decision looks at."""

    model: str
    new_pairs: int
    min_pairs: int
    judge_pairs: int
    min_judge_pairs: int
    last_dataset: str
    seed: int


def decide(
    situation: Situation, book: JobBook, registry: Registry, now: datetime
) -> tuple[TrainingRequested | None, str]:
    """The job to ask for, or None, and why."""
    model, need = situation.model, situation.min_pairs
    if need <= 0:
        return None, "off: the setting is 0"
    if situation.new_pairs < need:
        return None, f"{situation.new_pairs} of {need} new pairs"
    if situation.judge_pairs < situation.min_judge_pairs:
        return None, f"{situation.judge_pairs} of {situation.min_judge_pairs} judge's pairs"
    if any(book.waiting(model)):
        return None, "a job of this model is not finished"
    if book.trailing_failures(model, ACTOR) >= MAX_FAILURES:
        return None, f"the last {MAX_FAILURES} scheduled jobs failed; ask for one by hand"
    parent = registry.stable(model)
    if parent is None:
        return None, "no stable version to go on from"
    for version in registry.versions(model):
        if version.record.gate.released and version.lifecycle in _ON_THE_WAY:
            return None, f"{version.record.version} is on its way to traffic"
    asked = book.count(model, TrainingMethod.dpo, ACTOR)
    name = f"ratchet/{model}/{situation.last_dataset}/{asked}"
    job = TrainingRequested(
        job_id=str(uuid.uuid5(uuid.NAMESPACE_URL, name)),
        model=model,
        method=TrainingMethod.dpo,
        parent=parent.record.version,
        seed=situation.seed,
        reason=f"{situation.new_pairs} new pairs since {situation.last_dataset or 'the beginning'}",
        actor=ACTOR,
        requested_at=now,
    )
    return job, job.reason
