"""Upkeep of user keys: many erasures share a reading, and many keys are wrapped anew in parts."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import pytest

from shared.contracts.topics import USER_KEYS
from shared.kafka import user_key_upkeep
from shared.kafka.log import LogUnavailable, NewRecord, Record, read_to_end
from shared.kafka.user_key_issuer import UserKeyIssuer
from shared.kafka.user_key_upkeep import Rewrapping, UserKeyDestroyer, rewrap_keys
from shared.testing.log import MemoryLog
from tests.support.waiting import eventually
from tests.unit.shared.test_user_keys import SECRET, TENANT, issue, of

NEW = b"n" * 32
PEOPLE = [f"user{number}" for number in range(60)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_key_upkeep, "ROLL_S", 0.0)


@pytest.fixture
async def brokers() -> MemoryLog:
    return MemoryLog(partitions={USER_KEYS: 1})


class Readings:
    """Counts the readings of the topic, which wait for `goes_on`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = self.running = self.most = 0
        self.goes_on = asyncio.Event()
        self.fails = False
        monkeypatch.setattr(user_key_upkeep, "read_to_end", self.read)

    async def read(self, *given: Any, **rules: Any) -> list[Record]:
        self.count += 1
        self.running += 1
        self.most = max(self.most, self.running)
        await self.goes_on.wait()
        self.running -= 1
        if self.fails:
            raise LogUnavailable("away")
        return await read_to_end(*given, **rules)


def destroyed(log: MemoryLog) -> set[str]:
    return {one.key.partition(":")[0] for one in log.all(USER_KEYS) if one.value is None}


async def test_all_who_wait_for_a_reading_share_the_next(
    brokers: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    await issue(brokers, *PEOPLE)
    readings = Readings(monkeypatch)
    destroyer = UserKeyDestroyer(brokers)
    asked = [
        asyncio.create_task(destroyer.destroy([of(user), of("nobody")])) for user in PEOPLE[:40]
    ]
    await asyncio.sleep(0)
    late = [asyncio.create_task(destroyer.destroy([of(user)])) for user in PEOPLE[20:50]]
    readings.goes_on.set()
    async with asyncio.timeout(30):
        assert await asyncio.gather(*asked, *late) == [1] * 70
    assert (readings.count, readings.most) == (2, 1)
    assert destroyed(brokers) == {of(user) for user in PEOPLE[:50]}


async def test_a_reading_that_fails_fails_all_of_it_and_the_next_is_tried(
    brokers: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    await issue(brokers, "ann", "ben")
    readings = Readings(monkeypatch)
    readings.fails = True
    destroyer = UserKeyDestroyer(brokers)
    tries = [asyncio.create_task(destroyer.destroy([of(user)])) for user in PEOPLE]
    await asyncio.sleep(0)
    readings.goes_on.set()
    async with asyncio.timeout(30):
        ended = await asyncio.gather(*tries, return_exceptions=True)
    assert {type(one) for one in ended} == {LogUnavailable}
    assert readings.count == 2
    assert destroyed(brokers) == set()
    readings.fails = False
    assert await destroyer.destroy([of("ann"), of("ben")]) == 2
    assert destroyed(brokers) == {of("ann"), of("ben")}


async def test_one_who_is_cancelled_while_reading_leaves_the_rest_to_the_others(
    brokers: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    await issue(brokers, "ann", "ben", "cem")
    readings = Readings(monkeypatch)
    destroyer = UserKeyDestroyer(brokers)
    tries = [asyncio.create_task(destroyer.destroy([of(user)])) for user in ("ann", "ben", "cem")]
    for number, one in enumerate(tries[:2], 1):
        await eventually(lambda n=number: readings.count == n, "it reads")
        one.cancel()
    await eventually(lambda: readings.count == 3, "the last one reads")
    readings.goes_on.set()
    async with asyncio.timeout(30):
        assert await tries[2] == 1
    assert destroyed(brokers) == {of("cem")}


@pytest.mark.parametrize("held", [1, 7, 1000])
async def test_however_many_are_stale_few_are_held_and_all_are_wrapped_anew(
    brokers: MemoryLog, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    keys = await issue(brokers, *PEOPLE)
    other = UserKeyIssuer(brokers, b"x" * 32, SECRET)
    await other.ready()
    other.key_of(TENANT, of("other"))
    await other.acknowledged()
    await other.close()
    await UserKeyDestroyer(brokers).destroy([of(user) for user in PEOPLE[:10]])
    monkeypatch.setattr(user_key_upkeep, "HELD", held)
    batches: list[int] = []
    append = brokers.append_many

    async def append_many(records: Any, **options: Any) -> Any:
        batches.append(len(records))
        return await append(records, **options)

    monkeypatch.setattr(brokers, "append_many", append_many)
    assert await rewrap_keys(brokers, (NEW, SECRET)) == Rewrapping(50, 1)
    assert max(batches) == 50 if held > 50 else max(batches) < 25
    assert await rewrap_keys(brokers, (NEW, SECRET)) == Rewrapping(0, 1)
    ring = UserKeyIssuer(brokers, NEW, b"x" * 32)
    await ring.find([key_id for key_id, _ in keys.values()])
    found = {user: ring.key(key_id) for user, (key_id, _) in keys.items()}
    assert found == {user: None if user in PEOPLE[:10] else key for user, (_, key) in keys.items()}
    await ring.close()


async def test_names_of_destroyed_keys_take_no_memory_and_the_revived_are_destroyed_again(
    brokers: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number:064x}:{number:016x}" for number in range(20_000)]
    await brokers.append_many([NewRecord(USER_KEYS, name, None) for name in names])
    await brokers.append_many([NewRecord(USER_KEYS, name, b"{}") for name in names[:25]])
    monkeypatch.setattr(user_key_upkeep, "BATCH", 10)
    written: list[list[str]] = []
    append = brokers.append_many

    async def append_many(records: Any, **options: Any) -> Any:
        written.append([one.key for one in records if one.value is None])
        return await append(records, **options)

    monkeypatch.setattr(brokers, "append_many", append_many)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        await rewrap_keys(brokers, (NEW, SECRET))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most - before < 500_000, "a set of as many names takes a megabyte and more"
    batches = [names[0:10], names[10:20], names[20:25]]
    assert written == batches * 2
