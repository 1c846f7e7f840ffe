import asyncio
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router import spool as spool_module
from services.router.spool import Spool, SpoolShipper
from shared.kafka.log import NewRecord, read_to_end
from shared.testing.log import MemoryLog
from tests.support.waiting import eventually

LIMIT = 10_000_000


def record(number: int, size: int = 10) -> NewRecord:
    return NewRecord(
        "topic", f"key-{number}", str(number).encode() * size, (("ce_id", b"x"),), number % 3
    )


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
    shipper = SpoolShipper(spool, log)
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
    assert not await SpoolShipper(spool, log).drain(0.3)
    log.available = True
    assert await SpoolShipper(spool, log).drain(5)
    assert spool.bytes == 0
    spool.close()
