"""A partition's whole life in memory: a log, a changelog, batches, and kills between any two writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

from services.aggregator.aggregates import Aggregates, Part
from services.aggregator.batch import Batch
from services.aggregator.checkpoint import (
    all_parts,
    decode_checkpoint,
    encode_head,
    encode_parts,
    part_key,
)
from services.aggregator.disk_rows import DiskRows
from services.aggregator.fold import FoldRules, Output
from services.aggregator.partition import PartitionState
from services.aggregator.row_store import RowStore
from services.aggregator.rows import checkpoint_key
from shared.contracts.events.base import Event
from shared.contracts.events.interactions import InteractionRecorded
from shared.contracts.events.preferences import PreferencePair, PreferenceRetracted, UnpairedExample
from shared.contracts.events.quality import Tick
from shared.contracts.topics import FEEDBACK, INTERACTIONS, RATED, TICKS
from tests.support.aggregator import at
from tests.support.memory_rows import MemoryRows

Place = tuple[str, int]


class Killed(Exception):
    """The process is gone; only what was written stays."""


def log_ms(seconds: float) -> int:
    """A moment of the tests' own time as the broker's timestamp."""
    return int(at(seconds).timestamp() * 1000)


def stored_aggregates(stored: Mapping[bytes, bytes], partition: int = 0) -> Aggregates:
    """The aggregates of a partition's checkpoint on its changelog."""

    def read(part: Part, slot: int) -> bytes | None:
        return stored.get(part_key(partition, part, slot))

    return decode_checkpoint(stored[checkpoint_key(partition)], read)


def whole(aggregates: Aggregates) -> tuple[bytes, Callable[[Part, int], bytes | None]]:
    """Aggregates as a checkpoint all of whose parts were just written, for `decode_checkpoint`."""
    parts = encode_parts(aggregates, all_parts(aggregates))
    slots = dict.fromkeys((part for part, value in parts.items() if value is not None), 0)
    return encode_head(aggregates, slots), lambda part, _: parts.get(part)


def sums_of(aggregates: Aggregates, window: str) -> list[float]:
    """The figures of all windows of a length together."""
    versions = [one for held in aggregates.windows[window].values() for one in held.values()]
    return [sum(part) for part in zip(*versions, strict=True)]


def topic_of(event: Event) -> str:
    match event:
        case InteractionRecorded():
            return INTERACTIONS
        case Tick():
            return TICKS
        case _:
            return FEEDBACK


def recovered(
    rules: FoldRules | None = None, changelog: MutableMapping[bytes, bytes] | None = None
) -> PartitionState:
    """The state of partition 0 from what its changelog holds; without one it is new."""
    rules = rules or FoldRules()
    return taken_over(MemoryRows(0, rules, changelog), rules)


def taken_over(rows: RowStore, rules: FoldRules) -> PartitionState:
    """The state of partition 0 over its rows."""
    state = PartitionState(0, rows, rules)
    state.recover()
    state.settle(list(rows.unsettled()))
    return state


@dataclass
class Simulation:
    """Delivers `events` in their order to a worker that is killed as told."""

    events: Sequence[Event]
    rules: FoldRules = field(default_factory=FoldRules)
    changelog: dict[bytes, bytes] = field(default_factory=dict)
    records: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    """What was written to the changelog, before its compaction."""
    outputs: list[Output] = field(default_factory=list)
    rated: list[Event] = field(default_factory=list)
    acknowledged: dict[str, int] = field(default_factory=dict)
    kills: int = 0

    def run(self, *, batch: int = 3, kill_after: Iterable[int] = ()) -> Aggregates:
        """Work the log off. Each number kills the worker after so many further writes."""
        self._budgets = iter(kill_after)
        self._budget = next(self._budgets, None)
        while True:
            try:
                self._live(batch)
                return stored_aggregates(self.changelog)
            except Killed:
                self.kills += 1
                self._budget = next(self._budgets, None)

    def _live(self, batch: int) -> None:
        state = self._recovered()
        for topic, offset, event in self._placed():
            if offset >= self.acknowledged.get(topic, 0):
                self._deliver(state, topic, offset, event, ts_ms=log_ms(offset))
            if state.events >= batch:
                self._flush(state)
                self._deliver_rated(state)
        self._flush(state)
        while self._deliver_rated(state):
            self._flush(state)

    def _recovered(self) -> PartitionState:
        return recovered(self.rules, dict(self.changelog))

    def _placed(self) -> list[tuple[str, int, Event]]:
        heads: dict[str, int] = {}
        placed: list[tuple[str, int, Event]] = []
        for event in self.events:
            topic = topic_of(event)
            placed.append((topic, heads.get(topic, 0), event))
            heads[topic] = heads.get(topic, 0) + 1
        return placed

    def _deliver(
        self, state: PartitionState, topic: str, offset: int, event: Event, ts_ms: int
    ) -> None:
        if isinstance(event, Tick):
            ts_ms = int(event.at.timestamp() * 1000)  # The broker's clock is right.
        state.apply(topic, offset, event, event.to_json(), ts_ms)

    def _deliver_rated(self, state: PartitionState) -> int:
        first = state.expects(RATED)
        for offset in range(first, len(self.rated)):
            self._deliver(state, RATED, offset, self.rated[offset], ts_ms=0)
        return len(self.rated) - first

    def _flush(self, state: PartitionState) -> None:
        batch = state.take()
        self._write(batch)
        self._spend()
        state.confirm(batch)
        self._spend()
        self.acknowledged = {topic: offset + 1 for topic, offset in batch.offsets.items()}

    def _write(self, batch: Batch) -> None:
        for output in batch.outputs:
            self._spend()
            self.outputs.append(output)
            if output.topic == RATED:
                self.rated.append(output.event)
        for key, value in (*batch.rows, *batch.parts):
            self._record(key, value)
        self._record(batch.checkpoint_key, batch.checkpoint)
        batch.position = len(self.records) - 1
        for key in batch.dropped:
            self._record(key, None)

    def _record(self, key: bytes, value: bytes | None) -> None:
        self._spend()
        self.records.append((key, value))
        if value is None:
            self.changelog.pop(key, None)
        else:
            self.changelog[key] = value

    def _spend(self) -> None:
        if self._budget is None:
            return
        if self._budget == 0:
            raise Killed
        self._budget -= 1

    # -- what readers see

    def by_id(self) -> dict[str, tuple[str, str, bytes]]:
        """Outputs without repeats: id -> (topic, key, body), the first of each id."""
        found: dict[str, tuple[str, str, bytes]] = {}
        for output in self.outputs:
            found.setdefault(output.event_id, (output.topic, output.key, output.event.to_json()))
        return found

    def standing(self) -> set[tuple[str, str, str]]:
        """Pairs and examples that no retraction took back, without their times."""
        found: dict[str, tuple[str, str, str]] = {}
        retracted: set[str] = set()
        for output in self.outputs:
            match output.event:
                case PreferencePair() as pair:
                    found[pair.pair_id] = (pair.pair_id, pair.chosen, pair.rejected)
                case UnpairedExample() as example:
                    found[example.pair_id] = (
                        example.pair_id,
                        example.completion,
                        str(example.label),
                    )
                case PreferenceRetracted() as taken:
                    retracted.add(taken.pair_id)
                case _:
                    pass
        return {body for pair_id, body in found.items() if pair_id not in retracted}


@dataclass
class DiskSimulation(Simulation):
    """A simulation whose worker keeps its rows on disk, and reads the changelog's tail after a kill."""

    rows: DiskRows = field(kw_only=True)
    restored: list[int] = field(default_factory=list)
    """Per life, how many records of the changelog were read."""

    def _recovered(self) -> PartitionState:
        position = self.rows.position()
        first = position.offset + 1 if position is not None else 0
        self.restored.append(len(self.records) - first)
        if self.restored[-1]:
            self.rows.restore(self.records[first:], len(self.records) - 1)
        return taken_over(self.rows, self.rules)
