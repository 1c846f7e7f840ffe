"""Retraining trigger: decides whether a training job starts by itself. Pure.

Two replicas that see the same log ask for the same job_id, and a job_id is one job.
"""

# pyright: strict
from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from services.training.dataset_rows import answer_of, pair_of
from services.training.jobs import JobQueue
from services.training.pair_index import CountedPair, PairIndex
from services.training.reward_freshness import VotePlace
from services.training.reward_schedule import PairShapes
from services.training.row_checks import refusal
from services.training.sides import DatasetRules, Sides, assign, prompts_of, set_apart
from services.training.snapshot import Offsets
from shared.contracts.events.base import Event
from shared.contracts.events.preferences import PreferencePair, PreferenceRetracted, UnpairedExample
from shared.contracts.events.training import TrainingMethod, TrainingRequested
from shared.contracts.events.versions import Lifecycle
from shared.contracts.events.votes import is_drawn
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


@dataclass(frozen=True)
class PairCounts:
    """What a decision asks of the pairs."""

    new: Counter[str]
    """By category, trainable pairs that no version's snapshot has."""
    fresh: int
    """Those of them that the newest snapshot does not have."""
    heldout: int
    """Held out for the evaluation, old ones included."""
    judged: int
    """Of the judge, old ones included."""
    week: int
    """Made by people since the Monday asked about, whichever side they are on."""


class PairCounter:
    """Counts one model's trainable pairs that no version's snapshot has yet.

    All pairs decide on the sides, so all are kept, in an index on disk. Counting reads them some ten
    times: not for an event loop, and no event may be applied meanwhile.
    """

    def __init__(
        self,
        model: str,
        rules: DatasetRules,
        *,
        labelled: bool = False,
        index: PairIndex | None = None,
    ) -> None:
        """Count the pairs of an index, and those to come.

        Args:
            model: Whose pairs count.
            rules: Which pairs a training would refuse, and the sides of the others.
            labelled: Single answers, good or bad, count as well, as KTO trains on them.
            index: Where pairs are kept, of this model, these rules and `labelled`; None: in a
                temporary file.

        """
        self._labelled = labelled
        self._model = model
        self._rules = rules
        self._pairs = PairIndex() if index is None else index
        self._trained: dict[str, int] = {}
        self._sides: Sides[CountedPair] | None = None
        self._judged: Collection[CountedPair] = ()
        """All that are set apart for the judge, with `_sides`."""

    def apply(self, event: Event, place: str, offset: int) -> None:
        """Fold one event of `preferences.v1` that came from `place` (topic/partition)."""
        match event:
            case PreferencePair() if event.model == self._model:
                pair = pair_of(event)
                if refusal(pair, self._rules) is None:
                    counted = CountedPair(
                        prompt_digest=pair.prompt_digest,
                        prompt_rank=pair.prompt_rank,
                        raters=pair.raters,
                        panel=pair.panel,
                        category=pair.meta.get("category", ""),
                        place=place,
                        offset=offset,
                        judges=not pair.machine_made,
                        chars=len(pair.chosen),
                        day=_day_of(event),
                        drawn=is_drawn(event.context),
                    )
                    self._put(event.pair_id, counted)
            case UnpairedExample() if event.model == self._model and self._labelled:
                answer = answer_of(event)
                sound = answer.messages and answer.asked.refusal is None
                if sound and len(answer.answer.strip()) > self._rules.min_chars:
                    counted = CountedPair(
                        prompt_digest=answer.prompt_digest,
                        prompt_rank=answer.prompt_rank,
                        raters=answer.raters,
                        panel="",
                        category=answer.meta.get("category", ""),
                        place=place,
                        offset=offset,
                        judges=False,
                        label=answer.label,
                        day=_day_of(event),
                    )
                    self._put(event.pair_id, counted)
            case PreferenceRetracted():
                if self._pairs.pop(event.pair_id):
                    self._sides = None
            case _:
                pass

    def _put(self, pair_id: str, pair: CountedPair) -> None:
        self._sides = None
        self._pairs.put(pair_id, pair)

    def forget_all(self) -> None:
        """Count nothing any more: the pairs are those of a topic that is gone."""
        self._sides = None
        self._pairs.reset()

    def counts(self, offsets: Offsets, monday: date) -> PairCounts:
        """All that a decision asks; `offsets` are those of the newest snapshot.

        Raises:
            DiskFull: there is no room for them.
            PairIndexDamaged: the index cannot be read.

        """
        return PairCounts(
            self.by_category(),
            self.since(offsets),
            self.heldout,
            self.judged,
            self.made_since(monday),
        )

    def forget(self, offsets: Offsets) -> None:
        """Count no longer the pairs that a snapshot up to these offsets has."""
        for place, offset in offsets.items():
            self._trained[place] = max(offset, self._trained.get(place, 0))

    def __len__(self) -> int:
        return self.since(self._trained)

    def since(self, offsets: Offsets) -> int:
        """How many trainable pairs a snapshot up to these offsets does not have."""
        return self._since(offsets).total()

    def by_category(self) -> Counter[str]:
        """How many trainable pairs of each category no version's snapshot has."""
        return self._since(self._trained)

    def _since(self, offsets: Offsets) -> Counter[str]:
        sides, least = self._current(), {**offsets}
        for place, offset in self._trained.items():
            least[place] = max(offset, least.get(place, 0))
        return Counter(
            pair.category
            for side in (sides.train, sides.heldout)
            for pair in side
            if pair.offset >= least.get(pair.place, 0)
        )

    @property
    def heldout(self) -> int:
        """How many trainable pairs are held out for the evaluation, old ones included."""
        return len(self._current().heldout)

    @property
    def judged(self) -> int:
        """How many pairs the judge has, old ones included."""
        judge = self._current().judge
        votes = sum(pair.judges for pair in judge)
        if votes or not self._rules.judge_from_thumbs:
            return votes
        good = sum(pair.label is True for pair in judge)
        return min(good, sum(pair.label is False for pair in judge))

    def made_since(self, day: date) -> int:
        """How many trainable rows people made on this UTC date and later."""
        first = day.toordinal()
        return sum(
            pair.day >= first and (pair.judges or pair.label is not None)
            for pair in self._pairs.pairs()
        )

    def shapes(self, offsets: Offsets) -> tuple[PairShapes, PairShapes]:
        """Categories and lengths of people's pairs, those before these offsets and those since."""
        before, since = PairShapes(), PairShapes()
        for pair in self._pairs.pairs():
            if pair.judges:
                shapes = since if pair.offset >= offsets.get(pair.place, 0) else before
                shapes.categories[pair.category] += 1
                shapes.lengths[pair.chars] += 1
        return before, since

    def unlearned(self, offsets: Offsets, most: int) -> list[VotePlace]:
        """The newest votes that a reward model of a snapshot up to these offsets never learned from.

        They came since, and are such as its accuracy was measured on: people's, of raters and prompts
        that are trained on or held out, none on a prompt that was set apart for it, and on any two
        answers: a reward model's accuracy on pairs that it chose as hard to tell apart is no measure.

        Returns:
            Their places, newest first, at most so many.

        """
        sides = self._current()
        learned = prompts_of(
            pair for pair in self._judged if pair.offset < offsets.get(pair.place, 0)
        )
        fresh = (
            pair
            for side in (sides.train, sides.heldout)
            for pair in side
            if pair.judges
            and pair.drawn
            and pair.offset >= offsets.get(pair.place, 0)
            and pair.prompt_digest not in learned
        )
        newest = heapq.nlargest(most, fresh, key=lambda pair: (pair.day, pair.offset, pair.place))
        return [(pair.place, pair.offset) for pair in newest]

    def _current(self) -> Sides[CountedPair]:
        if self._sides is None:
            trainable, self._judged = set_apart(self._pairs.pairs(), self._rules)
            self._sides = assign(trainable, self._judged, self._rules)
        return self._sides


def _day_of(event: PreferencePair | UnpairedExample) -> int:
    return event.created_at.astimezone(UTC).toordinal()


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
    algorithm: str = ""
    heldout_pairs: int = 1
    fresh_pairs: int = 0
    """Pairs that came after the newest snapshot, whatever became of its job."""
    category_pairs_missing: int = 0
    """New pairs that the plan's categories still lack."""
    days_left: float = 0.0
    """Until the plan's cadence allows a training."""

    @property
    def missing(self) -> dict[str, float]:
        """Rows and days that the next training by itself still lacks; empty where it is off."""
        if self.min_pairs <= 0:
            return {}
        return {
            "pairs": max(0, self.min_pairs - self.new_pairs),
            "judge_pairs": max(0, self.min_judge_pairs - self.judge_pairs),
            "heldout_pairs": max(0, 1 - self.heldout_pairs),
            "category_pairs": self.category_pairs_missing,
            "days": self.days_left,
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
    if lacks := _lacks(inputs):
        return None, lacks
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
        if registry.on_another_base(version.record):
            continue
        if version.record.gate.released and version.lifecycle in _ON_THE_WAY:
            return None, f"{version.record.version} is on its way to traffic"
    job = TrainingRequested(
        job_id=queue.next_id(model, TrainingMethod.dpo, ACTOR, inputs.last_dataset),
        model=model,
        method=TrainingMethod.dpo,
        algorithm=inputs.algorithm,
        parent=parent.record.version,
        seed=inputs.seed,
        reason=f"{inputs.new_pairs} new pairs since {inputs.last_dataset or 'the beginning'}",
        actor=ACTOR,
        requested_at=now,
    )
    return job, job.reason


def _lacks(inputs: TriggerInputs) -> str:
    """What data or time a training still lacks; empty where nothing."""
    need = inputs.min_pairs
    if need <= 0:
        return "off: the setting is 0"
    if inputs.new_pairs < need:
        return f"{inputs.new_pairs} of {need} new pairs"
    if inputs.category_pairs_missing:
        return f"{inputs.category_pairs_missing} pairs of the plan's categories are missing"
    if inputs.days_left > 0:
        return f"{inputs.days_left:.1f} days until the plan's next training"
    if inputs.judge_pairs < inputs.min_judge_pairs:
        return f"{inputs.judge_pairs} of {inputs.min_judge_pairs} judge's pairs"
    if not inputs.heldout_pairs:
        return "no pair is held out for the evaluation"
    return ""


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
