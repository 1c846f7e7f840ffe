"""Spools that processes left behind which are no more."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.router import instance as instance_module
from services.router.instance import bytes_of, ship_left_behind, take
from services.router.spool import Spool
from services.router.spool_shipper import SpoolShipper
from services.router.unchecked_journal import UncheckedJournal
from shared.kafka.deadletters import DeadLetters
from shared.kafka.log import NewRecord, read_to_end
from shared.testing.log import MemoryLog
from tests.support.waiting import eventually

LIMIT = 10_000_000


def left_behind(directory: Path, value: bytes) -> Path:
    spool = Spool(directory / "spool", limit_bytes=LIMIT)
    assert spool.append(NewRecord("topic", "key", value))
    spool.close()
    return directory


def shipping(
    log: MemoryLog, waiting: list[Path], recovered: Counter[str] | None = None
) -> asyncio.Task[None]:
    letters = DeadLetters(log, service="router", redact=str, metrics=CollectorRegistry())
    shipped = ship_left_behind(
        waiting,
        lambda spool: SpoolShipper(spool, log, letters),
        LIMIT,
        Counter() if recovered is None else recovered,
    )
    return asyncio.create_task(shipped)


async def values(log: MemoryLog) -> list[bytes | None]:
    return [record.value for record in await read_to_end(log, "topic", timeout_s=60)]


def test_a_segment_that_goes_while_all_are_summed_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directories = [left_behind(tmp_path / f"router-{number}", b"x" * 100) for number in range(3)]
    whole, stat, looked_at = bytes_of(directories), Path.stat, list[Path]()

    def gone_for_the_second(self: Path, **options: bool) -> os.stat_result:
        if self.suffix == ".spool":
            looked_at.append(self)
            if len(looked_at) == 2:
                self.unlink()
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", gone_for_the_second)
    assert bytes_of(directories) == whole * 2 // 3 > 0


async def test_a_spool_whose_process_still_ends_is_shipped_once_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance_module, "RETRY_S", 0.01)
    log = MemoryLog()
    taken = left_behind(tmp_path / "router-1", b"taken")
    free = left_behind(tmp_path / "router-2", b"free")
    with capture_logs() as logs, take(taken):
        running = shipping(log, waiting := [taken, free])
        assert bytes_of(waiting) == sum(one.stat().st_size for one in tmp_path.rglob("*.spool")) > 0
        await eventually(lambda: len(logs) >= 2, "one is shipped, one is waited for")
        assert await values(log) == [b"free"]
        assert waiting == [taken]
        assert bytes_of(waiting) > 0
    await asyncio.wait_for(running, 60)
    assert await values(log) == [b"free", b"taken"]
    assert (waiting, bytes_of(waiting)) == ([], 0)
    with take(taken), take(free):
        pass


async def test_what_was_yet_to_be_checked_is_shipped_behind_the_spool(tmp_path: Path) -> None:
    log, directory = MemoryLog(), tmp_path / "router-1"
    journal = UncheckedJournal(directory)
    journal.note(NewRecord("topic", "key", b"withheld"))
    journal.close()
    waiting = [left_behind(directory, b"checked")]
    recovered = Counter[str]()
    await asyncio.wait_for(shipping(log, waiting, recovered), 60)
    assert await values(log) == [b"checked", b"withheld"]
    assert recovered == {"spool": 1, "unchecked": 1}


async def test_a_spool_that_the_disk_refuses_is_not_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance_module, "RETRY_S", 0.01)
    log = MemoryLog()
    directory = left_behind(tmp_path / "router-1", b"value")
    (directory / "spool").rename(tmp_path / "aside")
    (directory / "spool").touch()
    running = shipping(log, [directory])
    with capture_logs() as logs:
        await eventually(lambda: bool(logs), "the disk refused it")
    (directory / "spool").unlink()
    (tmp_path / "aside").rename(directory / "spool")
    await asyncio.wait_for(running, 60)
    assert await values(log) == [b"value"]


async def test_an_outage_is_waited_out_with_back_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MemoryLog()
    log.available = False
    pauses: list[float] = []
    turn = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds:
            pauses.append(seconds)
            log.available = len(pauses) == 8
        await turn(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    await asyncio.wait_for(shipping(log, [left_behind(tmp_path / "router-1", b"value")]), 60)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    monkeypatch.undo()
    assert await values(log) == [b"value"]
