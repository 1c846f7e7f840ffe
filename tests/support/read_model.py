"""Records as the log would hold them after some events, made by the aggregator's own reducers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from aiokafka.partitioner import murmur2

from services.aggregator.fold import Fold, FoldRules, Output
from services.aggregator.join import fold_feedback, fold_interaction, fold_vote
from services.aggregator.pairs import fold_rated
from services.aggregator.rows import PromptRow, TraceRow
from shared.contracts.events.base import Event
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackWithdrawn
from shared.contracts.events.interactions import InteractionRecorded
from shared.contracts.events.rated import RatedAnswer
from shared.contracts.events.signals import SignalObserved
from shared.contracts.events.votes import VoteCast
from shared.contracts.topics import EXAMPLES, FEEDBACK, PREFERENCES
from shared.kafka.envelope import encode
from shared.kafka.log import Record
from tests.support.aggregator import START

PARTITIONS = 2
RULES = FoldRules()
STORED_MS = int(START.timestamp() * 1000)


class LogBuilder:
    """Collects the records that feedback and aggregator would write, in the order of the log."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._ends: Counter[tuple[str, int]] = Counter()
        self._rows: dict[tuple[str, str], TraceRow] = {}
        self._prompts: dict[str, PromptRow] = {}

    def take(self, *events: Event) -> list[Record]:
        """Fold events as the aggregator would; returns the records that they added."""
        before = len(self.records)
        for event in events:
            match event:
                case InteractionRecorded():
                    self._fold(event, event.tenant, event.trace_id)
                case FeedbackSubmitted() | FeedbackWithdrawn() | SignalObserved():
                    self.add(FEEDBACK, event.trace_id, event)
                    self._fold(event, event.tenant, event.trace_id)
                case VoteCast():
                    self.add(FEEDBACK, event.comparison_id, event)
                    self._fold(event, event.tenant, event.comparison_id)
                case _:
                    raise AssertionError(type(event))
        return self.records[before:]

    def add(self, topic: str, key: str, event: Event, *, stored_ms: int = 0) -> Record:
        """Append one event to the log."""
        partition = (murmur2(key.encode()) & 0x7FFFFFFF) % PARTITIONS
        offset = self._ends[topic, partition]
        self._ends[topic, partition] += 1
        record = Record(
            topic=topic,
            partition=partition,
            offset=offset,
            key=key,
            value=event.to_json(),
            headers=encode(event, source="/ratchet/test", event_id=f"{offset}", time=START),
            timestamp_ms=stored_ms or STORED_MS + len(self.records) * 1000,
        )
        self.records.append(record)
        return record

    def _fold(self, event: Event, tenant: str, trace_id: str) -> None:
        row = self._rows.get((tenant, trace_id))
        fold: Fold[TraceRow]
        match event:
            case InteractionRecorded():
                fold = fold_interaction(row, event, event.to_json(), STORED_MS, RULES)
            case FeedbackSubmitted() | FeedbackWithdrawn():
                fold = fold_feedback(row, event, STORED_MS, RULES)
            case VoteCast():
                fold = fold_vote(row, event, STORED_MS)
            case _:
                raise AssertionError(type(event))
        self._rows[tenant, trace_id] = fold.row
        self._write(fold.outputs)

    def _write(self, outputs: Iterable[Output]) -> None:
        for output in outputs:
            event, topic, key = output.event, output.topic, output.key
            if isinstance(event, RatedAnswer):
                fold = fold_rated(self._prompts.get(event.prompt_key), event)
                self._prompts[event.prompt_key] = fold.row
                self._write(fold.outputs)
            elif topic in (EXAMPLES, PREFERENCES):
                self.add(topic, key, event)
