"""Consumption where a seek is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.aggregator.consumption import Consumption
from services.aggregator.metrics import AggregatorMetrics
from services.aggregator.offset_gaps import LAG_READS, LAG_S, ReadPlace
from services.aggregator.partition import PartitionState
from shared.contracts.events.base import EncryptedTexts
from shared.contracts.topics import INTERACTIONS
from shared.kafka.log import LogUnavailable
from shared.testing.clock import ManualClock
from tests.support.aggregator import feedback, interaction, source_record
from tests.unit.aggregator.simulation import recovered

TOPIC = "ratchet.feedback.v1"


class Expecting:
    """A partition state that waits for one offset."""

    def __init__(self, expected: int) -> None:
        self.expected = expected

    def expects(self, topic: str) -> int:
        return self.expected


class Log:
    """A source log that notes what is sought in it. Its client has handed out all of it."""

    def __init__(self, *places: tuple[str, int], end: int) -> None:
        self._places = {place: ReadPlace(end, end) for place in places or ((TOPIC, 0),)}
        self._reads = 0
        self.sought: list[tuple[str, int, int]] = []
        self.when_sought: Callable[[], None] = lambda: None

    async def seek(self, topic: str, partition: int, offset: int) -> None:
        self.sought.append((topic, partition, offset))
        self.when_sought()

    def places(self) -> dict[tuple[str, int], ReadPlace]:
        return self._places

    def reads(self) -> int:
        self._reads += LAG_READS
        return self._reads


async def test_an_event_that_is_dropped_is_sought_although_none_comes_after_it() -> None:
    """What was fetched before a change of the assignment is dropped, and a seek can be lost."""
    clock, source = ManualClock(), Log(end=9)
    nobody = cast("Any", None)
    consumption = Consumption(
        cast("Any", {0: Expecting(3)}),
        checkpointer=nobody,
        ticker=nobody,
        dead_letters=nobody,
        metrics=AggregatorMetrics(),
        source=source,
        clock=clock,
        die=nobody,
    )

    await consumption.fold({0: [source_record(TOPIC, 0, offset, feedback()) for offset in (7, 8)]})
    assert source.sought == [(TOPIC, 0, 3)]
    await consumption.seek_overdue()
    assert len(source.sought) == 1
    clock.advance(LAG_S)
    await consumption.seek_overdue()
    assert source.sought == [(TOPIC, 0, 3)] * 2
    consumption.clear()
    clock.advance(LAG_S)
    await consumption.seek_overdue()
    assert len(source.sought) == 2


def test_the_lag_is_of_the_partitions_that_the_worker_owns() -> None:
    class Unread(Log):
        def places(self) -> dict[tuple[str, int], ReadPlace]:
            return {(TOPIC, partition): ReadPlace(5, 9 + partition) for partition in (0, 1, 2)} | {
                ("ratchet.aggregator-changelog", 0): ReadPlace(0, 50)
            }

    states: dict[int, Any] = {0: Expecting(5), 1: Expecting(5)}
    nobody = cast("Any", None)
    consumption = Consumption(
        cast("Any", states),
        checkpointer=nobody,
        ticker=nobody,
        dead_letters=nobody,
        metrics=AggregatorMetrics(),
        source=Unread(end=9),
        clock=ManualClock(),
        die=nobody,
    )
    assert consumption.behind() == {TOPIC: 9}
    states.clear()
    assert consumption.behind() == {}


def folding(state: PartitionState, ended: list[str]) -> Consumption:
    """A worker of one partition that only folds; why it would end is put into `ended`."""
    return Consumption(
        {0: state},
        checkpointer=cast("Any", None),
        ticker=cast("Any", None),
        dead_letters=cast("Any", None),
        metrics=AggregatorMetrics(),
        source=Log(end=1),
        clock=ManualClock(),
        die=ended.append,
    )


async def test_encrypted_texts_without_the_secret_end_the_worker_before_they_are_folded() -> None:
    state = recovered()
    ended: list[str] = []
    consumption = folding(state, ended)
    texts = EncryptedTexts(keys=("k1",), data="AAAA")
    event = interaction().model_copy(update={"encrypted": texts})
    await consumption.fold({0: [source_record(INTERACTIONS, 0, 0, event)]})
    assert "RATCHET_TEXT_KEY_FILE" in ended[0]
    assert state.expects(INTERACTIONS) == 0


async def test_a_row_whose_key_cannot_be_read_ends_the_worker_and_refuses_no_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = recovered()
    ended: list[str] = []
    consumption = folding(state, ended)

    def closed(key: bytes) -> bytes:
        raise LogUnavailable("another secret")

    monkeypatch.setattr(state.stored, "get", closed)
    await consumption.fold({0: [source_record(INTERACTIONS, 0, 0, interaction())]})
    assert ended == ["writing: another secret"]
    assert state.expects(INTERACTIONS) == 0


async def test_an_assignment_that_changes_during_a_seek_ends_the_others() -> None:
    """The partition may come back with other offsets behind it, and those are its owner's."""
    clock, source = ManualClock(), Log((TOPIC, 0), (TOPIC, 1), (TOPIC, 2), end=9)
    nobody = cast("Any", None)
    states = cast("Any", {0: Expecting(3), 1: Expecting(3), 2: Expecting(3)})
    consumption = Consumption(
        states,
        checkpointer=nobody,
        ticker=nobody,
        dead_letters=nobody,
        metrics=AggregatorMetrics(),
        source=source,
        clock=clock,
        die=nobody,
    )

    def change() -> None:
        states.clear()
        states[2] = Expecting(7)

    source.when_sought = change
    for _ in range(2):
        await consumption.seek_overdue()
        clock.advance(LAG_S)
    assert source.sought == [(TOPIC, 0, 3)]


async def test_what_waits_in_a_fold_is_not_sought_until_the_fold_ends() -> None:
    clock, source = ManualClock(), Log(end=9)
    writing = asyncio.Lock()
    await writing.acquire()  # as while brokers confirm no batch
    nobody = cast("Any", None)
    consumption = Consumption(
        {0: recovered()},
        checkpointer=cast("Any", SimpleNamespace(writing=writing)),
        ticker=nobody,
        dead_letters=nobody,
        metrics=AggregatorMetrics(),
        source=source,
        clock=clock,
        die=nobody,
    )
    refused = source_record(TOPIC, 0, 0, interaction())
    folding = asyncio.create_task(consumption.fold({0: [refused]}))
    for _ in range(3):
        await consumption.seek_overdue()
        clock.advance(LAG_S)
        await asyncio.sleep(0)
    assert source.sought == []
    folding.cancel()
    await asyncio.wait([folding])
    for _ in range(2):
        await consumption.seek_overdue()
        clock.advance(LAG_S)
    assert source.sought == [(TOPIC, 0, 0)]
