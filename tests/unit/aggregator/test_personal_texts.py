"""Rows, outputs and events of the aggregator with texts encrypted by person."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

import orjson
import pytest

from services.aggregator.codec import SourceRecord, write_of
from services.aggregator.consumption import Consumption
from services.aggregator.fold import FoldRules, Output
from services.aggregator.join import fold_feedback, fold_interaction
from services.aggregator.metrics import AggregatorMetrics
from services.aggregator.pairs import fold_rated
from services.aggregator.partition import PartitionState
from services.aggregator.personal_texts import PersonalTexts
from services.aggregator.rows import PromptRow, TraceRow, prompt_row_key, trace_key
from services.aggregator.writer import Write
from shared.contracts.events.base import Event
from shared.contracts.events.erasures import TraceErased
from shared.contracts.events.feedback import FeedbackType
from shared.contracts.events.interactions import Outcome
from shared.contracts.events.quality import Tick
from shared.contracts.events.rated import RatedAnswer
from shared.contracts.events.user_keys import UserKeyIssued
from shared.contracts.events.votes import Choice
from shared.contracts.subject import subject_of
from shared.contracts.topics import (
    EXAMPLES,
    FEEDBACK,
    INTERACTIONS,
    PREFERENCES,
    QUALITY,
    RATED,
    TICKS,
    USER_KEYS,
)
from shared.kafka import user_key_upkeep
from shared.kafka.envelope import encode, headers_of
from shared.kafka.log import EventLog, LogUnavailable, NewRecord
from shared.kafka.user_key_issuer import UserKeyIssuer
from shared.kafka.user_key_store import WrappedKey
from shared.kafka.user_key_upkeep import UserKeyDestroyer
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from shared.text_encryption import DataKey
from tests.support.aggregator import (
    DOWN,
    UP,
    at,
    feedback,
    interaction,
    source_record,
    vote,
    withdrawn,
)
from tests.support.memory_rows import MemoryRows

RULES = FoldRules()
SECRET = "my mother's recipe"
LATER_S = 20 * 86_400.0
"""When most of a test's events come: feedback of its beginning waits in vain while they are kept."""
KEY = trace_key(0, "acme", "t1")


@pytest.fixture(autouse=True)
def roll_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_key_upkeep, "ROLL_S", 0.0)


def issuer(brokers: MemoryLog) -> UserKeyIssuer:
    return UserKeyIssuer(cast("EventLog", brokers), b"s" * 32)


def row_of_two_people() -> TraceRow:
    """ann asked, ben corrected."""
    asked = interaction("t1", user="ann", prompt=SECRET, completion=f"about {SECRET}")
    row = fold_interaction(None, asked, asked.to_json(), 0, RULES).row
    said = feedback(
        "f1", "t1", FeedbackType.text_correction, {"corrected": "ben's words"}, user="ben"
    )
    return fold_feedback(row, said, 1, RULES).row


async def test_a_stored_row_holds_no_text_and_opens_as_it_was() -> None:
    keys = issuer(MemoryLog())
    texts = PersonalTexts(keys)
    encoded = row_of_two_people().encode()
    stored = texts.close_row(KEY, encoded)
    assert SECRET.encode() not in stored
    assert b"ben's words" not in stored
    assert TraceRow.decode(texts.open_row(KEY, stored)) == TraceRow.decode(encoded)


async def test_of_a_row_the_erased_person_s_part_alone_is_closed_and_figures_stay() -> None:
    brokers = MemoryLog()
    keys = issuer(brokers)
    texts = PersonalTexts(keys)
    row = row_of_two_people()
    stored = texts.close_row(KEY, row.encode())
    await texts.acknowledged()
    await texts.ready()
    await UserKeyDestroyer(cast("EventLog", brokers)).destroy([subject_of("acme", "ben")])
    await texts.ready()
    left = TraceRow.decode(texts.open_row(KEY, stored))
    assert SECRET.encode() in left.interaction
    body = left.entries["f1"].body
    assert body is not None
    assert body["value"]["corrected"] == "[encrypted]"
    assert left.entries["f1"].figures == row.entries["f1"].figures
    again = texts.close_row(KEY, left.encode())
    assert b"[encrypted]" in again, "what is closed for good is stored again as it is"
    await texts.close()


async def test_rated_answers_of_a_prompt_are_closed_too() -> None:
    texts = PersonalTexts(issuer(MemoryLog()))
    asked = interaction("t1", user="ann", prompt=SECRET, completion=f"about {SECRET}")
    row = fold_interaction(None, asked, asked.to_json(), 0, RULES).row
    outputs = fold_feedback(row, feedback("f1", "t1", UP, user="ben"), 1, RULES).outputs
    rated = next(one.event for one in outputs if isinstance(one.event, RatedAnswer))
    encoded = fold_rated(None, rated).row.encode()
    assert SECRET.encode() in encoded
    key = prompt_row_key(0, rated.prompt_key)
    stored = texts.close_row(key, encoded)
    assert SECRET.encode() not in stored
    assert PromptRow.decode(texts.open_row(key, stored)) == PromptRow.decode(encoded)


async def test_outputs_about_people_are_closed_and_figures_are_not() -> None:
    brokers = MemoryLog()
    texts = PersonalTexts(issuer(brokers))
    event = interaction("t1", user="ann", prompt=SECRET)
    headers = encode(event, source="/test", event_id="e1", time=at(0.0))
    written = texts.encrypted(Write(EXAMPLES, None, b"t1", event.to_json(), headers))
    assert SECRET.encode() not in (written.value or b"")
    figures = Write(QUALITY, None, b"v1", b'{"completion":"1"}', ())
    assert texts.encrypted(figures) is figures
    await texts.acknowledged()
    assert len(brokers.all(USER_KEYS)) == 1

    record = source_record("ratchet.interactions.v1", 0, 0, event)
    closed = replace(record, value=written.value, headers=headers)
    other = PersonalTexts(issuer(brokers))
    assert await other.opened(closed) == event.to_json()
    await other.close()


async def test_keys_of_a_turn_are_read_together_and_never_on_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    brokers = MemoryLog()
    writer = PersonalTexts(issuer(brokers))
    events = [interaction(f"t{n}", user=f"user-{n}", prompt=SECRET) for n in range(20)]
    records: list[SourceRecord] = []
    for offset, event in enumerate(events):
        headers = encode(event, source="/test", event_id=event.trace_id, time=at(0.0))
        written = writer.encrypted(Write(INTERACTIONS, None, b"t", event.to_json(), headers))
        record = source_record(INTERACTIONS, 0, offset, event)
        records.append(replace(record, value=written.value, headers=headers))
    await writer.acknowledged()
    await UserKeyDestroyer(cast("EventLog", brokers)).destroy([subject_of("acme", "user-0")])

    keys = issuer(brokers)
    texts = PersonalTexts(keys)
    await texts.ready()
    readers: list[int] = []
    read, read_of = keys._read, keys._read_of

    def noting_read(key_ids: Iterable[str]) -> dict[str, bytes | None]:
        readers.append(threading.get_ident())
        return read(key_ids)

    def noting_read_of(subjects: Iterable[str]) -> dict[str, DataKey]:
        readers.append(threading.get_ident())
        return read_of(subjects)

    monkeypatch.setattr(keys, "_read", noting_read)
    monkeypatch.setattr(keys, "_read_of", noting_read_of)
    turn = [*records, replace(records[0], value=(records[0].value or b"")[:-5])]
    await texts.prefetch(turn, lambda _: None)
    assert len(readers) == 2
    assert threading.get_ident() not in readers
    for event, record in zip(events[1:], records[1:], strict=True):
        assert await texts.opened(record) == event.to_json()
        row = fold_interaction(None, event, event.to_json(), 0, RULES).row
        texts.close_row(trace_key(0, "acme", event.trace_id), row.encode())
    assert len(readers) == 2
    assert not keys._pending, "whose key is destroyed gets no other"
    await texts.close()


async def test_a_row_whose_key_was_changed_is_no_erased_person_s() -> None:
    brokers = MemoryLog()
    keys = issuer(brokers)
    texts = PersonalTexts(keys)
    stored = texts.close_row(KEY, row_of_two_people().encode())
    await texts.acknowledged()
    whole = brokers.all(USER_KEYS)[0]
    changed = orjson.dumps(orjson.loads(whole.value or b"") | {"wrapped": "AAAA"})
    other = MemoryLog()  # as compaction leaves it
    for record in (replace(whole, value=changed), *brokers.all(USER_KEYS)[1:]):
        await other.append(USER_KEYS, key=record.key, value=record.value, headers=record.headers)
    late = PersonalTexts(issuer(other))
    await late.ready()
    with pytest.raises(LogUnavailable, match="RATCHET_TEXT_KEY_FILE"):
        late.open_row(KEY, stored)
    await late.close()


class Uncounted:
    """A checkpointer and ticker that write nothing."""

    def __init__(self) -> None:
        self.writing = asyncio.Lock()

    def hold(self, record: SourceRecord) -> None: ...

    def observe_age(self, topic: str, at_s: float) -> None: ...

    def moved(self) -> None: ...


class Life:
    """A worker of partition 0 with a key ring of its own, over rows and brokers that outlive it."""

    def __init__(self, brokers: MemoryLog, stored: dict[bytes, bytes]) -> None:
        self.keys = issuer(brokers)
        self.texts = PersonalTexts(self.keys)
        self._rows = MemoryRows(0, RULES, stored)
        self.state = PartitionState(0, self._rows, RULES, self.texts)
        self.ended: list[str] = []
        uncounted = cast("Any", Uncounted())
        self._consumption = Consumption(
            {0: self.state},
            checkpointer=uncounted,
            ticker=uncounted,
            dead_letters=cast("Any", None),
            metrics=AggregatorMetrics(),
            source=cast("Any", None),
            clock=ManualClock(),
            die=self.ended.append,
            texts=self.texts,
        )

    async def begin(self) -> None:
        await self.texts.ready()
        self.state.recover()
        self.state.settle(list(self._rows.unsettled()))

    async def fold(self, topic: str, *events: Event, writer: PersonalTexts | None = None) -> None:
        """Fold events as `writer` encrypted them."""
        first = self.state.expects(topic)
        records: list[SourceRecord] = []
        for offset, event in enumerate(events, start=first):
            record = source_record(topic, 0, offset, event)
            write = Write(topic, None, b"", event.to_json(), headers_of(record.headers))
            value = writer.encrypted(write).value if writer is not None else write.value
            at_s = event.at.timestamp() if isinstance(event, Tick) else time.time()
            records.append(replace(record, value=value, timestamp=int(at_s * 1000)))
        if writer is not None:
            await writer.acknowledged()
        await self._consumption.fold({topic: records})
        assert not self.ended
        assert self.state.expects(topic) == first + len(events)

    def pending(self) -> list[NewRecord]:
        """Records of keys that it issued."""
        return list(self.keys._pending.values())

    def write(self) -> list[Output]:
        """Write a batch; returns its outputs."""
        batch = self.state.take()
        for output in batch.outputs:
            self.texts.encrypted(write_of(output))
        self.state.confirm(batch)
        return batch.outputs


async def test_rows_that_events_find_are_opened_by_keys_that_were_read_off_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    brokers, stored = MemoryLog(), dict[bytes, bytes]()
    writer = PersonalTexts(issuer(brokers))
    first = Life(brokers, stored)
    await first.begin()
    asked = [
        interaction(
            f"t{n}", user=f"user-{n}", prompt=SECRET, completion=f"answer {n}", seconds=LATER_S
        )
        for n in range(6)
    ]
    failed = interaction("t8", user="user-8", prompt=SECRET, outcome=Outcome.server_error)
    await first.fold(INTERACTIONS, *asked, failed, writer=writer)
    corrected = {"corrected": "ben's words"}
    early = [
        feedback("f1", "t1", FeedbackType.text_correction, corrected, user="ben", seconds=LATER_S),
        feedback("f3", "t3", UP, user="ben", seconds=LATER_S),
        feedback("f9", "t9", FeedbackType.text_correction, corrected, user="dora"),
    ]
    await first.fold(FEEDBACK, *early, vote("c1", user="eve"), writer=writer)
    rated = [one.event for one in first.write() if one.topic == RATED]
    assert rated
    await first.fold(RATED, *rated, writer=writer)
    first.write()
    await first.texts.acknowledged()
    await UserKeyDestroyer(cast("EventLog", brokers)).destroy([subject_of("acme", "user-0")])

    readers: list[int] = []
    second = Life(brokers, stored)
    await second.begin()
    store = second.keys._store
    select = store._select

    def noting(statement: str, value: int) -> list[WrappedKey]:
        readers.append(threading.get_ident())
        return select(statement, value)

    monkeypatch.setattr(store, "_select", noting)
    expiring = Tick(at=at(31 * 86_400.0), partition=0)
    await second.fold(TICKS, expiring)
    assert not readers, "what expires stays closed"
    erased = TraceErased(
        erasure_id="e1",
        tenant="acme",
        trace_id="t2",
        subjects=(subject_of("acme", "user-2"),),
        whole=True,
        erased_at=at(9.0),
    )
    late = [feedback(f"g{n}", f"t{n}", DOWN, user=f"carl-{n}") for n in (0, 1, 3, 4)]
    again = feedback("h9", "t9", UP, user="frank")
    await second.fold(FEEDBACK, *late, withdrawn("f1", "t1"), erased, again)
    await second.fold(FEEDBACK, vote("c1", Choice.right, revision=1, user="eve"), writer=writer)
    thumb = feedback("f10", "t10", UP, user="grace")
    await second.fold(FEEDBACK, thumb)
    both = [interaction(f"t{n}", user=f"user-{n}", prompt=SECRET) for n in (10, 11)]
    await second.fold(INTERACTIONS, *both, writer=writer)
    await second.fold(FEEDBACK, feedback("f11", "t11", UP, user="heidi"))
    outputs = second.write()
    await second.fold(RATED, *(one.event for one in outputs if one.topic == RATED), writer=writer)
    pairs = second.write()
    assert any(one.topic == PREFERENCES for one in (*outputs, *pairs))
    assert readers
    assert threading.get_ident() not in readers
    issued = [UserKeyIssued.model_validate_json(one.value or b"") for one in second.pending()]
    assert subject_of("acme", "user-0") not in {one.subject for one in issued}
    found = second.state.found(trace_key(0, "acme", "t9"))
    assert found is not None
    assert b"ben's words" not in found
    row = TraceRow.decode(second.texts.open_row(trace_key(0, "acme", "t9"), found))
    assert row.entries["f9"].body is not None
    assert row.entries["f9"].body["value"]["corrected"] == "ben's words"
    for one in (first.texts, second.texts, writer):
        await one.close()
