"""Consumption where a seek is lost."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.aggregator.consumption import BATCH_EVENTS, Consumption
from services.aggregator.metrics import AggregatorMetrics
from services.aggregator.offset_gaps import LAG_S
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
    """A source log that notes what is sought in it."""

    def __init__(self, **ends: int) -> None:
        self._ends = {(TOPIC, 0): ends["end"]}
        self.sought: list[tuple[str, int, int]] = []

    async def seek(self, topic: str, partition: int, offset: int) -> None:
        self.sought.append((topic, partition, offset))

    def ends(self) -> dict[tuple[str, int], int]:
        return self._ends


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


async def test_a_worker_that_works_off_a_backlog_seeks_nothing() -> None:
    clock, source = ManualClock(), Log(end=BATCH_EVENTS + 9)
    state = recovered()
    writer = cast("Any", None)
    consumption = Consumption(
        {0: state},
        checkpointer=cast("Any", SimpleNamespace(hold=lambda _: None, observe_age=lambda *_: None)),
        ticker=writer,
        dead_letters=writer,
        metrics=AggregatorMetrics(),
        source=source,
        clock=clock,
        die=pytest.fail,
    )

    async def backlog(first: int, last: int) -> None:
        for offset in range(first, last):
            state.events = 0  # no batch is written here
            event = interaction(f"t{offset}")
            await consumption.fold({0: [source_record(INTERACTIONS, 0, offset, event)]})

    await consumption.seek_overdue()
    for first in (0, BATCH_EVENTS + 1):
        clock.advance(LAG_S)
        await backlog(first, first + BATCH_EVENTS + 1)
        await consumption.seek_overdue()
    assert source.sought == []
    for _ in range(2):
        clock.advance(LAG_S)
        await consumption.seek_overdue()
    assert source.sought == [(TOPIC, 0, 0)]


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
