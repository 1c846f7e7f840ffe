import asyncio
import os
import socket
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from services.router import spool as spool_module
from services.router.spool import Spool
from services.router.spool_shipper import SpoolShipper
from shared.kafka.deadletters import DeadLetters, list_dead_letters
from shared.kafka.log import PER_TURN, NewRecord, read_to_end
from shared.testing.log import MemoryLog
from tests.support.small_disk import small_disk
from tests.support.waiting import eventually

LIMIT = 10_000_000


def record(number: int, size: int = 10) -> NewRecord:
    return NewRecord(
        "topic", f"key-{number}", str(number).encode() * size, (("ce_id", b"x"),), number % 3
    )


def shipper_of(spool: Spool, log: MemoryLog) -> SpoolShipper:
    letters = DeadLetters(log, service="router", redact=str, metrics=CollectorRegistry())
    return SpoolShipper(spool, log, letters)


def test_what_is_appended_comes_back_whole_and_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit_bytes=LIMIT)
    sent = [record(n) for n in range(50)]
    assert all(spool.append(one) for one in sent)
    assert spool.batch()[0] == sent
    spool.close()


@given(
    st.lists(
        st.tuples(st.text(max_size=20), st.binary(max_size=200), st.none() | st.integers(0, 9)),
        max_size=20,
    )
)
def test_any_record_survives_a_restart(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[str, bytes, int | None]]
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    sent = [NewRecord("t", key, value, (), partition) for key, value, partition in parts]
    first = Spool(folder, limit_bytes=LIMIT)
    for one in sent:
        assert first.append(one)
    first.close()
    second = Spool(folder, limit_bytes=LIMIT)
    assert second.batch()[0] == sent
    second.close()


async def test_records_of_an_earlier_process_are_counted_once_they_are_shipped(
    tmp_path: Path,
) -> None:
    first = Spool(tmp_path, limit_bytes=LIMIT)
    assert all(first.append(record(n)) for n in range(7))
    first.close()
    log, second = MemoryLog(), Spool(tmp_path, limit_bytes=LIMIT)
    assert second.append(record(7))
    log.available = False
    assert not await shipper_of(second, log).ship()
    assert second.recovered == 0
    log.available = True
    assert await shipper_of(second, log).drain(5)
    assert second.recovered == 7
    assert second.append(record(8))
    assert await shipper_of(second, log).drain(5)
    assert second.recovered == 7
    second.close()


def test_a_full_spool_refuses_and_takes_again_after_a_trim(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit_bytes=500)
    accepted = 0
    while spool.append(record(accepted)):
        accepted += 1
    assert 0 < accepted < 20
    _, place = spool.batch()
    spool.trim(place)
    assert spool.bytes == 0
    assert spool.append(record(1))
    spool.close()


def test_trimmed_records_never_come_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit_bytes=LIMIT)
    for number in range(5):
        spool.append(record(number))
    spool.trim(spool.batch()[1])
    spool.append(record(5))
    spool.close()
    again = Spool(tmp_path, limit_bytes=LIMIT)
    assert again.batch()[0] == [record(5)]
    again.close()


@pytest.mark.parametrize("cut", [1, 5, 9, 20])
def test_a_torn_last_frame_is_dropped_and_nothing_else(tmp_path: Path, cut: int) -> None:
    spool = Spool(tmp_path, limit_bytes=LIMIT)
    for number in range(3):
        spool.append(record(number))
    spool.close()
    (segment,) = tmp_path.glob("*.spool")
    os.truncate(segment, segment.stat().st_size - cut)
    again = Spool(tmp_path, limit_bytes=LIMIT)
    again.append(record(9))
    assert again.batch()[0] == [record(0), record(1), record(9)]
    again.trim(again.batch()[1])
    assert not again.batch()[0]
    again.close()


def test_a_flipped_bit_ends_its_segment(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit_bytes=LIMIT)
    for number in range(3):
        spool.append(record(number))
    spool.close()
    (segment,) = tmp_path.glob("*.spool")
    raw = bytearray(segment.read_bytes())
    (length,) = struct.unpack_from(">I", raw)
    raw[8 + length + 8 + 3] ^= 1
    segment.write_bytes(raw)
    again = Spool(tmp_path, limit_bytes=LIMIT)
    assert again.batch()[0] == [record(0)]
    again.close()


def test_segments_roll_and_are_deleted_behind_the_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 300)
    spool = Spool(tmp_path, limit_bytes=LIMIT)
    sent = [record(number) for number in range(30)]
    for one in sent:
        spool.append(one)
    assert len(list(tmp_path.glob("*.spool"))) > 3
    assert spool.batch()[0] == sent
    spool.trim(spool.batch()[1])
    assert len(list(tmp_path.glob("*.spool"))) == 1
    spool.close()


async def test_the_shipper_waits_out_an_outage_and_loses_nothing(tmp_path: Path) -> None:
    log = MemoryLog()
    log.available = False
    spool = Spool(tmp_path, limit_bytes=LIMIT)
    shipper = shipper_of(spool, log)
    running = asyncio.create_task(shipper.run())
    sent = [NewRecord("topic", "key", str(number).encode()) for number in range(20)]
    for one in sent[:10]:
        spool.append(one)
    assert not await shipper.ship()
    log.available = True
    for one in sent[10:]:
        spool.append(one)
    await eventually(lambda: spool.bytes == 0, "all is shipped")
    running.cancel()
    values = [r.value for r in await read_to_end(log, "topic", timeout_s=1)]
    assert values == [one.value for one in sent]
    spool.close()


async def test_draining_is_bounded(tmp_path: Path) -> None:
    log = MemoryLog()
    log.available = False
    spool = Spool(tmp_path, limit_bytes=LIMIT)
    spool.append(record(1))
    assert not await shipper_of(spool, log).drain(0.3)
    log.available = True
    assert await shipper_of(spool, log).drain(5)
    assert spool.bytes == 0
    spool.close()


@pytest.fixture
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "DISK_RETRY_S", 0.0)


@pytest.mark.usefixtures("without_waiting")
def test_disk_refuses_a_segment_and_gives_no_descriptor_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case disk-refuses-a-segment: a connection got the descriptor, and then a user's prompt."""
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 300)
    spool = Spool(tmp_path, limit_bytes=LIMIT)
    blocker = tmp_path / "00000002.spool"
    blocker.mkdir()
    sent = [record(number) for number in range(30)]
    assert all(spool.append(one) for one in sent[:10])
    assert spool.trouble
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert all(spool.append(one) for one in sent[10:20])
        for connection in (ours, theirs):
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)
    blocker.rmdir()
    assert all(spool.append(one) for one in sent[20:])
    assert not spool.trouble
    assert (tmp_path / "00000002.spool").is_file()
    assert spool.batch()[0] == sent
    spool.close()


@pytest.mark.usefixtures("without_waiting")
async def test_a_full_disk_loses_nothing_while_kafka_takes_it(tmp_path: Path) -> None:
    log = MemoryLog()
    sent = [NewRecord("topic", str(n), os.urandom(4_000)) for n in range(200)]
    with small_disk(tmp_path):
        spool = Spool(tmp_path / "spool", limit_bytes=LIMIT)
        assert all(spool.append(one) for one in sent)
        assert spool.trouble
        shipper = shipper_of(spool, log)
        assert await shipper.drain(5)
        assert spool.bytes == 0
        assert spool.append(record(1))
        assert not spool.trouble
        spool.close()
        again = Spool(tmp_path / "spool", limit_bytes=LIMIT)
        assert again.batch()[0] == [record(1)]
        again.close()
    assert sorted(r.value or b"" for r in log.all("topic")) == sorted(one.value for one in sent)


@pytest.mark.usefixtures("without_waiting")
async def test_a_full_disk_and_no_kafka_count_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "MEMORY_BYTES", 50_000)
    log = MemoryLog()
    log.available = False
    sent = [NewRecord("topic", str(n), os.urandom(4_000)) for n in range(200)]
    with small_disk(tmp_path):
        spool = Spool(tmp_path / "spool", limit_bytes=LIMIT)
        taken = [one for one in sent if spool.append(one)]
        assert 0 < len(taken) < len(sent)
        shipper = shipper_of(spool, log)
        assert not await shipper.ship()
        log.available = True
        assert await shipper.drain(5)
        spool.close()
    stored = sorted(r.value or b"" for r in log.all("topic"))
    assert stored == sorted(one.value for one in taken)


@pytest.mark.usefixtures("without_waiting")
async def test_a_spool_without_a_disk_ships_from_memory_until_there_is_one(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.write_text("a file where the folder should be")
    log = MemoryLog()
    spool = Spool(directory, limit_bytes=LIMIT)
    shipper = shipper_of(spool, log)
    assert spool.trouble
    assert spool.append(NewRecord("topic", "a", b"1"))
    assert await shipper.drain(5)
    directory.unlink()
    assert spool.append(NewRecord("topic", "a", b"2"))
    assert not spool.trouble
    spool.close()
    again = Spool(directory, limit_bytes=LIMIT)
    assert await shipper_of(again, log).drain(5)
    again.close()
    assert [r.value for r in log.all("topic")] == [b"1", b"2"]


async def test_a_deleted_segment_does_not_end_the_shipper(tmp_path: Path) -> None:
    log = MemoryLog()
    spool = Spool(tmp_path, limit_bytes=LIMIT)
    shipper = shipper_of(spool, log)
    spool.append(record(1))
    spool.batch()  # from now on the record is on disk alone
    for segment in tmp_path.glob("*.spool"):
        segment.unlink()
    assert await shipper.drain(5)
    spool.append(NewRecord("topic", "a", b"2"))
    assert await shipper.drain(5)
    assert [r.value for r in log.all("topic")] == [b"2"]
    spool.close()


def test_recent_records_need_no_disk_to_be_shipped(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit_bytes=LIMIT)
    sent = [record(n) for n in range(3)]
    assert all(spool.append(one) for one in sent)
    (segment,) = tmp_path.glob("*.spool")
    segment.unlink()
    assert spool.batch()[0] == sent
    assert spool.append(record(3))
    (following,) = tmp_path.glob("*.spool")
    assert following != segment  # what comes later is not written to a file that is gone
    assert spool.batch()[0] == [record(3)]
    spool.close()


@pytest.mark.parametrize("kept", [0, 100, 10_000])
def test_what_memory_has_no_room_for_is_read_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(spool_module, "RECENT_BYTES", kept)
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 400)
    monkeypatch.setattr(spool_module, "SHIP_BYTES", 700)
    spool = Spool(tmp_path, limit_bytes=LIMIT)
    sent = [record(n) for n in range(60)]
    assert all(spool.append(one) for one in sent)
    spool.batch()  # as if its shipping had failed: the same records come again
    shipped: list[NewRecord] = []
    while records := (batch := spool.batch())[0]:
        shipped += records
        spool.trim(batch[1])
    assert shipped == sent
    spool.close()


@pytest.mark.parametrize("recent", [0, LIMIT])
async def test_a_long_backlog_is_gathered_in_turns_with_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recent: int
) -> None:
    monkeypatch.setattr(spool_module, "RECENT_BYTES", recent)
    spool = Spool(tmp_path, limit_bytes=LIMIT)
    log = MemoryLog()
    sent = [record(n) for n in range(60 * PER_TURN)]
    assert all(spool.append(one) for one in sent)
    gathered, seen, late = 0, [0], 0
    records = spool._records

    def counting(number: int, start: int, limit: int) -> Iterator[tuple[NewRecord, int]]:
        nonlocal gathered
        for one in records(number, start, limit):
            gathered += 1
            yield one

    async def request() -> None:
        """A request's event comes in each turn."""
        nonlocal late
        while True:
            seen.append(gathered)
            late += spool.append(record(len(sent) + late))
            await asyncio.sleep(0)

    monkeypatch.setattr(spool, "_records", counting)
    others = asyncio.create_task(request())
    assert await shipper_of(spool, log).ship()
    others.cancel()
    assert gathered > 50 * PER_TURN
    assert max(after - before for before, after in pairwise(seen)) <= PER_TURN
    assert await shipper_of(spool, log).drain(5)
    wanted = {record(n).key for n in range(len(sent) + late)}
    assert sorted(one.key for one in log.all("topic")) == sorted(wanted)
    spool.close()


async def test_a_record_that_brokers_never_take_is_buried_and_stepped_over(tmp_path: Path) -> None:
    log = MemoryLog()
    spool = Spool(tmp_path, limit_bytes=LIMIT)
    shipper = shipper_of(spool, log)
    poison = [
        NewRecord("topic", f"bad-{n}", b"x", (("traceparent", b"0" * 1_100_000),)) for n in "ab"
    ]
    good = [NewRecord("topic", str(n), b"good") for n in range(9)]
    for one in (*good[:4], poison[0], *good[4:8], poison[1], good[8]):
        spool.append(one)
    assert await shipper.drain(5)
    assert sorted(r.key for r in log.all("topic")) == [one.key for one in good]
    assert shipper.refused == len(poison)
    letters = await list_dead_letters(log)
    assert sorted(one.source_key for one in letters) == ["bad-a", "bad-b"]
    assert {one.reason for one in letters} == {"too_large"}
    spool.close()
