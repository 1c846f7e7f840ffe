"""Group commit: who shares an append, who is answered when, and who answers for what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from shared.kafka.group_commit import GroupCommit
from shared.kafka.log import LogUnavailable, NewRecord, Position, RecordRefused
from tests.support.waiting import eventually

LARGE = b"large"


class GatedBrokers:
    """Take appends, each once it is let through; keep what they stored, by partition."""

    def __init__(self) -> None:
        self.appends: list[list[bytes]] = []
        self.stored: dict[int, list[bytes]] = {}
        self.timeouts_s: list[float] = []
        self.gates: dict[int, asyncio.Event] = {}
        self.error: Exception | None = None

    async def append(self, records: Sequence[NewRecord], timeout_s: float) -> list[Position]:
        values = [record.value or b"" for record in records]
        self.appends.append(values)
        self.timeouts_s.append(timeout_s)
        (partition,) = {record.partition or 0 for record in records}
        if gate := self.gates.get(partition):
            try:
                async with asyncio.timeout(timeout_s):
                    await gate.wait()
            except TimeoutError:
                raise LogUnavailable("no acknowledgement") from None
        if self.error is not None:
            raise self.error
        if LARGE in values:
            raise RecordRefused("too large")
        log = self.stored.setdefault(partition, [])
        first = len(log)
        log += values
        return [Position("t", partition, first + place) for place in range(len(values))]


def record(value: bytes, partition: int = 0) -> NewRecord:
    return NewRecord("t", "key", value, partition=partition)


@pytest.fixture
def brokers() -> GatedBrokers:
    return GatedBrokers()


@pytest.fixture
def groups(brokers: GatedBrokers) -> GroupCommit:
    return GroupCommit(brokers.append, linger_s=0.001, batch_bytes=1000)


async def test_records_that_wait_together_share_an_append_for_each_partition(
    brokers: GatedBrokers, groups: GroupCommit
) -> None:
    values = [b"%d" % number for number in range(6)]
    waiting = [groups.append(record(value, int(value) % 2), 5) for value in values]
    positions = await asyncio.gather(*waiting)
    assert brokers.appends == [[b"0", b"2", b"4"], [b"1", b"3", b"5"]]
    assert [brokers.stored[one.partition][one.offset] for one in positions] == values


async def test_the_next_group_waits_for_the_one_before_and_order_is_kept(
    brokers: GatedBrokers, groups: GroupCommit
) -> None:
    gate = brokers.gates[0] = asyncio.Event()
    first = groups.append(record(b"first"), 5)
    await eventually(lambda: bool(brokers.appends), "the first is on its way")
    later = [groups.append(record(b"%d" % number), 5) for number in range(3)]
    await groups.append(record(b"of another partition", 1), 5)
    assert brokers.appends == [[b"first"], [b"of another partition"]]
    gate.set()
    await asyncio.gather(first, *later)
    assert brokers.stored[0] == [b"first", b"0", b"1", b"2"]
    assert len(brokers.appends) == 3


async def test_a_slow_partition_holds_up_no_other(
    brokers: GatedBrokers, groups: GroupCommit
) -> None:
    brokers.gates[0] = asyncio.Event()
    slow, quick = groups.append(record(b"s", 0), 5), groups.append(record(b"q", 1), 5)
    assert (await quick).partition == 1
    assert not slow.done()
    brokers.gates[0].set()
    await slow


@pytest.mark.parametrize("place", range(5))
async def test_a_refused_record_fails_alone_and_order_is_kept(
    brokers: GatedBrokers, groups: GroupCommit, place: int
) -> None:
    values = [b"%d" % number for number in range(5)]
    values[place] = LARGE
    waiting = [groups.append(record(value), 5) for value in values]
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [number for number, one in enumerate(results) if isinstance(one, RecordRefused)] == [
        place
    ]
    assert brokers.stored[0] == [value for value in values if value != LARGE]


async def test_a_group_over_a_batch_s_size_is_stored_batch_by_batch_in_order(
    brokers: GatedBrokers, groups: GroupCommit
) -> None:
    values = [b"%02d" % number * 150 for number in range(10)]
    await asyncio.gather(*(groups.append(record(value), 5) for value in values))
    assert brokers.stored[0] == values
    assert len(brokers.appends) > 1
    assert all(sum(map(len, append)) <= 1000 for append in brokers.appends)


async def test_what_is_overdue_when_its_turn_comes_is_not_sent(
    brokers: GatedBrokers, groups: GroupCommit
) -> None:
    brokers.gates[0] = asyncio.Event()
    waiting = [groups.append(record(b"%03d" % number * 300), 0.05) for number in range(20)]
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(one) for one in results} == {LogUnavailable}
    assert len(brokers.appends) == 1


async def test_a_cancelled_append_is_left_out_and_harms_nobody(
    brokers: GatedBrokers, groups: GroupCommit
) -> None:
    waiting = [groups.append(record(b"%d" % number), 5) for number in range(3)]
    waiting[1].cancel()
    await asyncio.gather(waiting[0], waiting[2])
    assert brokers.stored[0] == [b"0", b"2"]
    gate = brokers.gates[0] = asyncio.Event()
    waiting = [groups.append(record(b"late"), 5), groups.append(record(b"too"), 5)]
    await eventually(lambda: len(brokers.appends) == 2, "both are on their way")
    waiting[0].cancel()
    gate.set()
    await waiting[1]
    assert brokers.stored[0][2:] == [b"late", b"too"]


async def test_each_fails_at_its_own_deadline_where_the_brokers_do_not_acknowledge(
    brokers: GatedBrokers, groups: GroupCommit
) -> None:
    gate = brokers.gates[0] = asyncio.Event()
    hurried, patient = groups.append(record(b"a"), 0.05), groups.append(record(b"b"), 60)
    with pytest.raises(LogUnavailable):
        await hurried
    assert not patient.done()
    assert 59 < brokers.timeouts_s[0] <= 60
    gate.set()
    assert (await patient).offset == 1


async def test_one_that_waits_behind_a_group_fails_at_its_own_deadline(
    brokers: GatedBrokers, groups: GroupCommit
) -> None:
    gate = brokers.gates[0] = asyncio.Event()
    patient = groups.append(record(b"a"), 60)
    await eventually(lambda: bool(brokers.appends), "the first is on its way")
    with pytest.raises(LogUnavailable):
        await asyncio.wait_for(groups.append(record(b"b"), 0.05), 30)
    gate.set()
    assert (await patient).offset == 0
    assert brokers.stored[0] == [b"a"]


async def test_all_of_a_group_fail_where_the_brokers_do_not_acknowledge(
    brokers: GatedBrokers, groups: GroupCommit
) -> None:
    brokers.gates[0] = asyncio.Event()
    waiting = [groups.append(record(b"%d" % number), 0.05) for number in range(2)]
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in results] == [LogUnavailable, LogUnavailable]
    brokers.gates.clear()
    assert (await groups.append(record(b"c"), 5)).offset == 0


async def test_an_append_that_breaks_leaves_nobody_waiting(
    brokers: GatedBrokers, groups: GroupCommit
) -> None:
    brokers.error = RuntimeError("broken")
    waiting = groups.append(record(b"a"), 5)
    with pytest.raises(RuntimeError, match="broken"):
        await waiting
    brokers.error = None
    assert (await groups.append(record(b"b"), 5)).offset == 0


async def test_flush_waits_for_none_that_lingers(brokers: GatedBrokers) -> None:
    groups = GroupCommit(brokers.append, linger_s=60, batch_bytes=1000)
    waiting = groups.append(record(b"a"), 5)
    await groups.flush()
    assert waiting.result() == Position("t", 0, 0)
    await groups.flush()
