"""One partition's state: which events count, the rows they change and the checkpoint over them.

Pure: no I/O and no clock. A batch is taken with `take`, written by the worker in the order outputs,
rows, checkpoint, deletions, and confirmed with `confirm`. Killed anywhere in between, a successor rebuilds the
state with `recover` and gets to the same sums (design section 8):

- an event at or below the checkpoint's offset for its topic is ignored;
- above it, an event whose effect a recovered row holds only adds the contributions kept with the
  row's mark: its outputs were confirmed before the row was written;
- any other event is folded.

Rows wait in a row store; those that changed and are not confirmed yet are held here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import TypeVar

from services.aggregator import erasing, join, pairs
from services.aggregator.aggregates import FIGURES, Aggregates, Part
from services.aggregator.batch import Batch, DueEntry, IndexChanges
from services.aggregator.checkpoint import (
    SHOWN,
    Slots,
    all_parts,
    decode_checkpoint,
    encode_head,
    encode_parts,
    named_slots,
    part_key,
    part_of,
)
from services.aggregator.contributions import Contribution, Mark, OutcomeCounted
from services.aggregator.errors import EventRefused
from services.aggregator.fold import Fold, FoldRules, Output
from services.aggregator.quality_windows import window_output
from services.aggregator.row_store import RowStore, RowTexts, index_row
from services.aggregator.rows import (
    CapRow,
    PromptRow,
    Row,
    TraceRow,
    cap_row_key,
    checkpoint_key,
    decode_row,
    prompt_row_key,
    trace_key,
)
from services.aggregator.tenant_budget import TenantBytes
from services.aggregator.tenant_search import TenantSearch
from shared.contracts.events.base import Event
from shared.contracts.events.erasures import TraceErased
from shared.contracts.events.feedback import (
    MAX_TRACE_BYTES,
    FeedbackSubmitted,
    FeedbackWithdrawn,
)
from shared.contracts.events.interactions import InteractionRecorded
from shared.contracts.events.quality import Tick
from shared.contracts.events.rated import RatedAnswer, RatedScore
from shared.contracts.events.signals import SignalObserved
from shared.contracts.events.votes import VoteCast
from shared.contracts.topics import TICKS

EXPIRIES_PER_TICK = 2000
"""Rows that one tick looks at, so that a tick stays short, and that one batch drops at most."""

OVER_BUDGET = "over_budget"
"""Outcome of an interaction whose texts went because its tenant held too many bytes."""

RowT = TypeVar("RowT", TraceRow, PromptRow, CapRow)


@dataclass(slots=True)
class PartitionState:
    """Everything the worker knows of a partition it owns."""

    partition: int
    stored: RowStore
    """Rows and the checkpoint as the changelog has them."""
    rules: FoldRules
    texts: RowTexts | None = None
    """Encryption of people's texts in stored rows; None: they are in clear."""
    aggregates: Aggregates = field(default_factory=Aggregates)
    confirmed: dict[str, int] = field(default_factory=dict)
    """Offsets of the last confirmed checkpoint."""
    _slots: Slots = field(default_factory=dict)
    """Where the newest checkpoint has its parts."""
    _strays: list[bytes] = field(default_factory=list)
    """Keys of parts that the recovered checkpoint does not name: a worker was killed before it did."""
    _waiting: Counter[int] = field(default_factory=Counter[int])
    """Minute of the log -> feedbacks that came in it and wait for their interaction."""
    events: int = 0
    """Events since the last batch."""
    _rows: dict[bytes, Row | None] = field(default_factory=dict)
    """Rows not confirmed yet; None is a row to delete."""
    _dirty: set[bytes] = field(default_factory=set)
    _dropped_marks: dict[bytes, list[Mark]] = field(default_factory=dict)
    """Marks of rows dropped in this batch, for a row of the same key that comes after it."""
    _outputs: list[Output] = field(default_factory=list)
    _replays: dict[tuple[str, int], list[Contribution]] = field(default_factory=dict)
    _index: IndexChanges = field(default_factory=IndexChanges)
    """What the running batch changes in the store's indexes."""
    _closed: set[bytes] = field(default_factory=set[bytes])
    """Keys of unconfirmed rows whose texts are still encrypted: a tick changed them, and needs none."""
    tenants: TenantBytes = field(default_factory=TenantBytes)
    _looked_to: DueEntry | None = None
    """The last due entry looked at since the store changed; earlier ones would come again."""
    _search: TenantSearch = field(default_factory=TenantSearch)

    @property
    def pending(self) -> int:
        """Feedbacks that wait for their interaction."""
        return self._waiting.total()

    @property
    def held(self) -> int:
        """How many rows there are."""
        return self._index.held

    def unknown(self, now_s: float) -> int:
        """Feedbacks that wait so long for their interaction that no router can have made it."""
        last = (now_s - self.rules.unknown_trace_s) // 60
        return sum(count for minute, count in self._waiting.items() if minute < last)

    def recover(self) -> None:
        """Take over the checkpoint; the rows above it follow with `settle`, before any event."""
        self._index.held = self.stored.held()
        self.tenants.sums = self.stored.tenants()
        checkpoint = self.stored.get(checkpoint_key(self.partition))
        if checkpoint is not None:
            self.aggregates = decode_checkpoint(checkpoint, self._part)
            self._slots = named_slots(checkpoint)
            self.confirmed = dict(self.aggregates.offsets)
            for dropped in self.aggregates.dropped:
                if self._read(dropped.encode()) is not None:
                    self._drop(dropped.encode(), [])
        self._waiting.update(self.stored.waiting())
        self._strays = [key for key in self.stored.parts() if part_of(key) not in self._slots]

    def settle(self, keys: Sequence[bytes]) -> None:
        """Take over rows that the changelog brought: what their marks hold above the checkpoint."""
        settled: list[bytes] = []
        for key in keys:
            stored = self.stored.get(key) if key not in self._rows else None
            marks = decode_row(key, stored).marks if stored is not None else ()
            uncovered = [mark for mark in marks if mark.offset > self.confirmed.get(mark.topic, -1)]
            for topic, offset, contributions in uncovered:
                self._replays.setdefault((topic, offset), []).extend(contributions)
            if not uncovered:
                settled.append(key)
        self.stored.settle(settled)

    def found(self, key: bytes) -> bytes | None:
        """The row that an event would find; its texts are encrypted where it is not in memory."""
        row = self._rows.get(key)
        if row is not None:
            return row.encode()
        return None if key in self._rows else self.stored.get(key)

    def expects(self, topic: str) -> int:
        """The offset that the next event of a topic should have, or later."""
        return self.aggregates.offsets.get(topic, -1) + 1

    def apply(self, topic: str, offset: int, event: Event, raw: bytes, ts_ms: int) -> bool:
        """Fold one event; False where it counted before.

        Args:
            topic: where the event is from.
            offset: its place there; with the topic, the cause of all that follows.
            event: the event.
            raw: its JSON.
            ts_ms: when it reached the log.

        Raises:
            EventRefused: the event cannot be folded; nothing has changed, not even the offset, so that
                no checkpoint covers the event before `skip` says that its dead letter is kept.
        """
        before = self.aggregates.offsets.get(topic, -1)
        if offset <= before:
            return False
        self.aggregates.offsets[topic] = offset
        try:
            self._replay_or_fold(topic, offset, event, raw, ts_ms)
        except Exception:
            self.aggregates.offsets[topic] = before
            raise
        self.events += 1
        return True

    def _replay_or_fold(
        self, topic: str, offset: int, event: Event, raw: bytes, ts_ms: int
    ) -> None:
        recorded = self._replays.pop((topic, offset), None)
        if recorded is not None:
            self.aggregates.apply(recorded)
            if topic != TICKS:
                return
        self._fold(topic, offset, event, raw, ts_ms)

    def skip(self, topic: str, offset: int) -> None:
        """Count an event as seen whose dead letter is kept."""
        self.aggregates.offsets[topic] = max(offset, self.aggregates.offsets.get(topic, -1))
        self.events += 1

    def checkpoint(self) -> tuple[bytes, dict[Part, bytes | None]]:
        """What was recovered: a head, and all parts that metrics are made of, for those to start from."""
        parts = encode_parts(self.aggregates, all_parts(self.aggregates, SHOWN))
        slots = dict.fromkeys((part for part, value in parts.items() if value is not None), 0)
        return encode_head(self.aggregates, slots), parts

    def take(self) -> Batch:
        """End the batch: encode what changed. The next event begins another."""
        rows: list[tuple[bytes, bytes]] = []
        dropped: list[bytes] = []
        index = self._index
        for key in self._dirty:
            row = self._rows[key]
            if row is None:
                dropped.append(key)
                index.waiting[key] = ()
                self.tenants.resize(key, 0)
                continue
            due_ms, waiting = index_row(row, self.rules)
            index.due.append(DueEntry(due_ms, key))
            if isinstance(row, TraceRow) and row.entries:
                index.waiting[key] = waiting
            row.marks = [
                mark for mark in row.marks if mark.offset > self.confirmed.get(mark.topic, -1)
            ]
            encoded = row.encode()
            if self.texts is not None:
                encoded = self.texts.close_row(key, encoded)
            self.tenants.resize(key, len(encoded))
            rows.append((key, encoded))
        index.tenants = self.tenants.take()
        self.aggregates.dropped = [key.decode() for key in dropped]
        changed = encode_parts(self.aggregates, self.aggregates.take_touched())
        parts, gone = self._placed(changed)
        batch = Batch(
            self.partition,
            self._outputs,
            rows,
            encode_head(self.aggregates, self._slots),
            [*dropped, *gone],
            dict(self.aggregates.offsets),
            index,
            parts,
            changed,
        )
        self._index = IndexChanges(held=index.held)
        self._outputs = []
        self._dirty = set()
        self._dropped_marks = {}
        self._search.begin_batch()
        self.events = 0
        return batch

    def _placed(
        self, changed: Mapping[Part, bytes | None]
    ) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
        """Parts by the keys that they are written to, and the keys to delete once the head is written."""
        parts: list[tuple[bytes, bytes]] = []
        gone: list[bytes] = []
        for part, value in changed.items():
            if value is not None:
                slot = self._slots[part] = 1 - self._slots.get(part, 1)
                parts.append((part_key(self.partition, part, slot), value))
            elif self._slots.pop(part, None) is not None:
                gone.extend(part_key(self.partition, part, slot) for slot in (0, 1))
        gone.extend(key for key in self._strays if part_of(key) not in self._slots)
        self._strays = []
        return parts, gone

    def _part(self, part: Part, slot: int) -> bytes | None:
        return self.stored.get(part_key(self.partition, part, slot))

    def confirm(self, batch: Batch) -> None:
        """The changelog has the batch: store it and forget what was held back for it."""
        self.stored.commit(batch)
        written = (*(key for key, _ in batch.rows), *batch.dropped)
        done = [key for key in written if key not in self._dirty]
        for key in done:
            self._rows.pop(key, None)
        self._closed.intersection_update(self._rows)
        self.tenants.forget_but(self._rows)
        self._looked_to = None
        self.confirmed = batch.offsets

    def _fold(self, topic: str, offset: int, event: Event, raw: bytes, ts_ms: int) -> None:
        rules = self.rules
        match event:
            case InteractionRecorded():
                key = trace_key(self.partition, event.tenant, event.trace_id)
                row = self._row(key, TraceRow)
                self._keep(
                    topic, offset, key, row, join.fold_interaction(row, event, raw, ts_ms, rules)
                )
            case FeedbackSubmitted() | FeedbackWithdrawn() | SignalObserved():
                key = trace_key(self.partition, event.tenant, event.trace_id)
                row = self._row(key, TraceRow)
                self._keep(topic, offset, key, row, join.fold_feedback(row, event, ts_ms, rules))
            case VoteCast():
                key = trace_key(self.partition, event.tenant, event.comparison_id)
                row = self._row(key, TraceRow)
                self._keep(topic, offset, key, row, join.fold_vote(row, event, ts_ms))
            case TraceErased():
                key = trace_key(self.partition, event.tenant, event.trace_id)
                row = self._row(key, TraceRow)
                self._keep(topic, offset, key, row, erasing.fold_erased(row, event))
            case RatedAnswer():
                key = prompt_row_key(self.partition, event.prompt_key)
                answers = self._row(key, PromptRow)
                self._keep(topic, offset, key, answers, pairs.fold_rated(answers, event))
            case RatedScore():
                key = cap_row_key(self.partition, event.cap_key)
                cap = self._row(key, CapRow)
                self._keep(topic, offset, key, cap, join.fold_score(cap, event, rules))
            case Tick():
                self._tick(offset, event, ts_ms)
            case _:
                raise EventRefused("unknown_type", f"{topic} carries no {type(event).__name__}")

    def _row(self, key: bytes, kind: Callable[..., RowT]) -> RowT | None:
        """The row with its texts."""
        if key in self._rows and key not in self._closed:
            return self._rows[key]  # type: ignore[return-value]
        row = self._rows.get(key)
        stored = row.encode() if row is not None else self._read(key)
        if stored is None:
            return None
        if self.texts is not None:
            stored = self.texts.open_row(key, stored)
        return kind.decode(stored)  # type: ignore[attr-defined]

    def _read(self, key: bytes) -> bytes | None:
        """A row as it is stored, with its texts encrypted."""
        stored = self.stored.get(key)
        if stored is not None:
            self.tenants.read(key, len(stored))
        return stored

    def _keep(
        self, topic: str, offset: int, key: bytes, before: RowT | None, fold: Fold[RowT]
    ) -> None:
        row = fold.row
        if isinstance(row, TraceRow) and topic != TICKS:
            size = len(row.encode()) if row.entries else len(row.interaction)
            if size > MAX_TRACE_BYTES:
                raise EventRefused(
                    "too_large",
                    f"with this event its trace would take {size} bytes, "
                    f"at most {MAX_TRACE_BYTES} can be kept",
                )
        if before is None:
            row.marks.extend(self._dropped_marks.pop(key, ()))
        # Repeats and conflicts too: a replay must not judge them by a later state of the row.
        row.marks.append(Mark(topic, offset, fold.contributions))
        if isinstance(row, TraceRow) and row.entries:
            self._wait(before if isinstance(before, TraceRow) else None, row)
        if before is None:
            self._index.held += 1
        if topic != TICKS:
            self._closed.discard(key)
        elif self.texts is not None and key not in self._rows:
            self._closed.add(key)
        self._rows[key] = row
        self._dirty.add(key)
        self.aggregates.apply(fold.contributions)
        self._outputs.extend(fold.outputs)

    def _wait(self, before: TraceRow | None, after: TraceRow) -> None:
        self._waiting.update(after.waiting())
        for minute in before.waiting() if before is not None else ():
            self._waiting[minute] -= 1
            if not self._waiting[minute]:
                del self._waiting[minute]

    def _tick(self, offset: int, event: Tick, ts_ms: int) -> None:
        now_s = self.aggregates.stream_time(ts_ms / 1000, event.at.timestamp())
        if now_s is None:
            self.aggregates.apply([OutcomeCounted("tick_refused")])
            return
        self._expire(offset, now_s)
        time = datetime.fromtimestamp(now_s, UTC)
        for key in self.aggregates.tick(now_s):
            window, start, version = key
            found = self.aggregates.windows[window].get(start, {}).get(version)
            sums = found or [0] * len(FIGURES)
            self._outputs.append(window_output(key, sums, self.partition, offset, time))
        self.aggregates.forget()
        over = self.tenants.over(self.rules.tenant_bytes)
        self._search.trim(over, self.stored.due, lambda key: self._trim(offset, key), now_s)

    def _expire(self, offset: int, now_s: float) -> None:
        # The checkpoint names the rows that it drops: after an outage, many ticks fit into one batch.
        budget = max(0, EXPIRIES_PER_TICK - len(self._dropped_marks))
        now_ms = round(now_s * 1000)
        for key in list(islice(self._unconfirmed_due(now_ms), budget)):
            budget -= 1
            self._expire_row(offset, key, now_ms)
        for entry in islice(self.stored.due(now_ms, self._looked_to), budget):
            self._looked_to = entry
            if self._expire_row(offset, entry.key, now_ms):
                self._index.looked.append(entry)

    def _unconfirmed_due(self, now_ms: int) -> Iterator[bytes]:
        """Rows that are due and that the store's index does not know yet."""
        for key, row in self._rows.items():
            if row is not None and index_row(row, self.rules).due_ms <= now_ms:
                yield key

    def _expire_row(self, offset: int, key: bytes, now_ms: int) -> bool:
        """Expire or drop a row where it is due; False where its entry must stay in the index."""
        row = self._present(key)
        if row is None:
            return True
        if self._is_ahead(row):
            return False
        due_ms = index_row(row, self.rules).due_ms
        if due_ms > now_ms:
            self._index.due.append(DueEntry(due_ms, key))
        elif isinstance(row, TraceRow) and not join.over(row, now_ms / 1000, self.rules):
            fold = join.expire(row, now_ms / 1000, self.rules)
            self._keep(TICKS, offset, key, row, fold)
        else:
            self._drop(key, row.marks)
        return True

    def _trim(self, offset: int, key: bytes) -> int:
        """Take a row's texts where it has no feedback; how many bytes that gave back."""
        row = self._present(key)
        if not isinstance(row, TraceRow) or self._is_ahead(row) or not join.has_texts_alone(row):
            return 0
        before = len(row.encode())
        fold = join.drop_texts(row, outcome=OVER_BUDGET)
        self._keep(TICKS, offset, key, row, fold)
        after = len(fold.row.encode())
        self.tenants.resize(key, after)
        return before - after

    def _present(self, key: bytes) -> Row | None:
        """The row as it is after the last event; its texts may be encrypted."""
        if key in self._rows:
            return self._rows[key]
        stored = self._read(key)
        return decode_row(key, stored) if stored is not None else None

    def _is_ahead(self, row: Row) -> bool:
        """After a crash a row may hold effects of events that come after this tick."""
        return any(mark.offset > self.aggregates.offsets.get(mark.topic, -1) for mark in row.marks)

    def _drop(self, key: bytes, marks: list[Mark]) -> None:
        self._rows[key] = None
        self._closed.discard(key)
        self._dropped_marks[key] = marks
        self._dirty.add(key)
        self._index.held -= 1
