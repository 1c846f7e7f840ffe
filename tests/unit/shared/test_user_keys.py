"""User keys on disk: what is known is the topic's, whatever happened to the process or its file."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import threading
import time
import tracemalloc
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from shared import text_encryption
from shared.contracts.subject import subject_of
from shared.contracts.topics import FEEDBACK, USER_KEYS
from shared.kafka import user_key_feed, user_key_files, user_key_store, user_key_upkeep, user_keys
from shared.kafka.encrypted_log import DecryptingLog, EncryptingLog
from shared.kafka.log import EventLog, LogUnavailable, NewRecord, Record, TopicReplaced, read_to_end
from shared.kafka.user_key_feed import UserKeyFeed
from shared.kafka.user_key_issuer import UserKeyIssuer
from shared.kafka.user_key_store import Taken, UserKeyStore
from shared.kafka.user_key_upkeep import UserKeyDestroyer, rewrap_keys
from shared.kafka.user_keys import TextsLocked, UserKeys
from shared.testing.log import MemoryLog
from tests.support.waiting import eventually

SECRET = b"s" * 32
TENANT = "default"
KILLS = 100


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_key_upkeep, "ROLL_S", 0.0)
    monkeypatch.setattr(user_key_feed, "LOOK_S", 0.01)


@pytest.fixture
async def brokers() -> MemoryLog:
    return MemoryLog(partitions={USER_KEYS: 1})


def of(user: str) -> str:
    return subject_of(TENANT, user)


async def issue(
    log: MemoryLog, *users: str, secret: bytes = SECRET
) -> dict[str, tuple[str, bytes]]:
    """A key for each user, on the log."""
    issuer = UserKeyIssuer(log, secret)
    await issuer.ready()
    keys = {user: issuer.key_of(TENANT, of(user)) for user in users}
    await issuer.acknowledged()
    await issuer.close()
    return keys


def wrapped_in(log: MemoryLog) -> dict[str, bytes]:
    """Name of each key's record -> wrapped key, destroyed or not."""
    return {
        one.key: b64decode(orjson.loads(one.value)["wrapped"])
        for one in log.all(USER_KEYS)
        if one.value
    }


def on_disk(folder: Path) -> bytes:
    return b"".join(one.read_bytes() for one in folder.iterdir())


def pieces(wrapped: bytes) -> list[bytes]:
    return [wrapped[at : at + 12] for at in range(len(wrapped) - 11)]


async def read_offsets(
    log: MemoryLog, folder: Path, *users: str, keys: dict[str, tuple[str, bytes]]
) -> tuple[list[int], list[bytes | None]]:
    """A process of its own: which offsets it read, and the users' keys."""
    ring = UserKeys(cast("EventLog", log), SECRET, folder=folder)
    read: list[int] = []
    take = ring._store.take

    def noted(records: Sequence[Record]) -> Taken:
        read.extend(one.offset for one in records)
        return take(records)

    ring._store.take = noted
    try:
        await ring.find([keys[user][0] for user in users])
        return read, [ring.key(keys[user][0]) for user in users]
    finally:
        await ring.close()


async def test_a_restart_reads_what_came_since(brokers: MemoryLog, tmp_path: Path) -> None:
    keys = await issue(brokers, *map(str, range(20)))
    read, found = await read_offsets(brokers, tmp_path, "3", keys=keys)
    assert read == list(range(20))
    assert found == [keys["3"][1]]
    keys |= await issue(brokers, "late")
    read, found = await read_offsets(brokers, tmp_path, "3", "late", keys=keys)
    assert read == [19, 20], "the newest that is stored tells the topic"
    assert found == [keys["3"][1], keys["late"][1]]


async def test_a_key_destroyed_while_nobody_ran_opens_nothing_after_the_start(
    brokers: MemoryLog, tmp_path: Path
) -> None:
    keys = await issue(brokers, "ann", "ben")
    await read_offsets(brokers, tmp_path, "ann", "ben", keys=keys)
    await UserKeyDestroyer(brokers).destroy([of("ann")])
    _, found = await read_offsets(brokers, tmp_path, "ann", "ben", keys=keys)
    assert found == [None, keys["ben"][1]]


async def test_a_destroyed_key_is_in_no_file(brokers: MemoryLog, tmp_path: Path) -> None:
    users = [f"user{number}" for number in range(300)]
    first, second = users[:150], users[150:]
    keys = await issue(brokers, *first)
    ring = UserKeys(brokers, SECRET, folder=tmp_path)
    await ring.find([keys["user7"][0]])
    keys |= await issue(brokers, *second)
    await ring.refresh()
    wrapped = wrapped_in(brokers)
    assert all(one in on_disk(tmp_path) for one in wrapped.values())
    gone = [of(user) for user in random.Random(1).sample(users, 100)]
    await UserKeyDestroyer(brokers).destroy(gone)
    await ring.refresh()
    left = on_disk(tmp_path)
    for name, one in wrapped.items():
        assert (one in left) is (name.partition(":")[0] not in gone)
        if name.partition(":")[0] in gone:
            assert not any(piece in left for piece in pieces(one))
    await ring.close()


async def test_what_was_destroyed_before_the_first_start_s_end_is_in_no_file(
    brokers: MemoryLog, tmp_path: Path
) -> None:
    keys = await issue(brokers, "ann", "ben")
    wrapped = wrapped_in(brokers)
    await UserKeyDestroyer(brokers).destroy([of("ann")])
    _, found = await read_offsets(brokers, tmp_path, "ann", "ben", keys=keys)
    assert found == [None, keys["ben"][1]]
    left = on_disk(tmp_path)
    assert [one in left for one in wrapped.values()] == [False, True]


async def test_a_temporary_file_has_no_name(
    brokers: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_key_store.tempfile, "tempdir", str(tmp_path))
    keys = await issue(brokers, "ann")
    ring = UserKeys(brokers, SECRET)
    await ring.find([keys["ann"][0]])
    assert not list(tmp_path.iterdir())
    await UserKeyDestroyer(brokers).destroy([of("ann")])
    await ring.refresh()
    assert ring.key(keys["ann"][0]) is None
    await ring.close()


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [
        damage,
        lambda path: path.write_bytes(b"no database, but long enough to be read" * 100),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: path.unlink(),
        lambda path: _execute(path, "PRAGMA user_version = 99"),
        lambda path: _execute(path, "UPDATE about SET origin = 'other brokers'"),
        lambda path: _execute(path, "UPDATE newest SET stored_ms = 1"),
        lambda path: _execute(path, "UPDATE newest SET offset = 1000"),
    ],
    ids=["pages", "no database", "cut", "lost", "format", "brokers", "other topic", "longer topic"],
)
async def test_a_lost_damaged_or_foreign_file_is_made_anew(
    harm: Callable[[Path], object], brokers: MemoryLog, tmp_path: Path
) -> None:
    users = [f"user{number}" for number in range(100)]
    keys = await issue(brokers, *users)
    await read_offsets(brokers, tmp_path, "user7", keys=keys)
    harm(tmp_path / "0.sqlite")
    _, found = await read_offsets(brokers, tmp_path, *users, keys=keys)
    assert found == [key for _, key in keys.values()]


def _execute(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


async def test_a_file_damaged_under_a_running_reader_is_made_anew(
    brokers: MemoryLog, tmp_path: Path
) -> None:
    keys = await issue(brokers, "ann")
    ring = UserKeys(brokers, SECRET, folder=tmp_path)
    await ring.find([keys["ann"][0]])
    ring._unwrapped.clear()
    damage(tmp_path / "0.sqlite")
    cast("sqlite3.Connection", ring._store._reading).execute("PRAGMA cache_size = 0")
    cast("sqlite3.Connection", ring._store._reading).execute("PRAGMA shrink_memory")

    async def again() -> bool:
        try:
            await ring.find([keys["ann"][0]])
        except LogUnavailable:
            return False
        return ring.key(keys["ann"][0]) == keys["ann"][1]

    await eventually(again, "the key is found again", 30)
    await ring.close()


async def test_a_file_that_cannot_be_written_is_said_and_tried_again(
    brokers: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_key_feed, "WHOLE_TIMEOUT_S", 0.2)
    keys = await issue(brokers, "ann")
    folder = tmp_path / "keys"
    folder.write_text("in the way")
    ring = UserKeys(brokers, SECRET, folder=folder)
    with pytest.raises(LogUnavailable, match="RATCHET_DATA_DIR"):
        await ring.find([keys["ann"][0]])
    folder.unlink()
    monkeypatch.setattr(user_key_feed, "WHOLE_TIMEOUT_S", 30)
    await ring.find([keys["ann"][0]])
    assert ring.key(keys["ann"][0]) == keys["ann"][1]
    await ring.close()


async def test_a_full_disk_stores_a_batch_once_there_is_room(
    brokers: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = UserKeys(brokers, SECRET, folder=tmp_path)
    keys = await issue(brokers, "ann")
    await ring.find([keys["ann"][0]])
    take, failures = ring._store.take, 2

    def full(records: Sequence[Record]) -> Taken:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise sqlite3.OperationalError("database or disk is full")
        return take(records)

    monkeypatch.setattr(ring._store, "take", full)
    keys |= await issue(brokers, "ben")
    await ring.find([one for one, _ in keys.values()])
    assert failures < 0
    assert ring.key(keys["ben"][0]) == keys["ben"][1]
    await ring.close()


@pytest.mark.parametrize("settled", [False, True], ids=["first start", "later"])
async def test_killed_between_any_two_steps_a_process_goes_on(
    settled: bool, brokers: MemoryLog, tmp_path: Path
) -> None:
    """SQLite calls the handler between two of its instructions; there the process is killed."""
    keys = await issue(brokers, "ann", "ben")
    if settled:
        await read_offsets(brokers, tmp_path, "ann", keys=keys)
    keys |= await issue(brokers, "cem", "dora")
    wrapped = wrapped_in(brokers)
    await UserKeyDestroyer(brokers).destroy([of("ann"), of("cem")])
    records = brokers.all(USER_KEYS)
    whole = tmp_path / "whole"
    _copied(tmp_path, whole)
    steps = _steps_of(whole, records)
    for step in sorted({*range(0, steps, max(1, steps // KILLS)), steps - 1}):
        folder = tmp_path / str(step)
        _copied(tmp_path, folder)
        _killed(folder, records, step)
        store = UserKeyStore(folder)
        store.open()
        _take_rest(store, records)
        stored = [store.key(keys[user][0]) for user in keys]
        assert [one is None for one in stored] == [True, False, True, False], step
        store.close()
        left = on_disk(folder)
        assert [one in left for one in wrapped.values()] == [False, True, False, True], step


def _copied(folder: Path, to: Path) -> None:
    to.mkdir()
    for one in folder.glob("0.*"):
        (to / one.name).write_bytes(one.read_bytes())


def _steps_of(folder: Path, records: list[Record]) -> int:
    """SQLite's instructions for taking the records."""
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    store = UserKeyStore(folder)
    store.open()
    cast("sqlite3.Connection", store._writing).set_progress_handler(step, 1)
    _take_rest(store, records)
    store.close()
    return steps


def _killed(folder: Path, records: list[Record], steps: int) -> None:
    """A process that takes the records and is killed after so many steps."""
    child = os.fork()
    if child == 0:
        _take_and_die(folder, records, steps)
    os.waitpid(child, 0)


def _take_rest(store: UserKeyStore, records: list[Record]) -> None:
    for record in records[max(store.positions().values(), default=0) :]:
        store.take([record])
    store.settle()


def _take_and_die(folder: Path, records: list[Record], steps: int) -> None:
    left = steps

    def step() -> int:
        nonlocal left
        left -= 1
        if left < 0:
            os._exit(9)
        return 0

    try:
        store = UserKeyStore(folder)
        store.open()
        cast("sqlite3.Connection", store._writing).set_progress_handler(step, 1)
        _take_rest(store, records)
    finally:
        os._exit(0)


async def test_killed_before_it_emptied_its_log_a_process_does_so_at_its_start(
    brokers: MemoryLog, tmp_path: Path
) -> None:
    keys = await issue(brokers, "ann")
    await read_offsets(brokers, tmp_path, "ann", keys=keys)
    await issue(brokers, "ben")
    gone = wrapped_in(brokers)[f"{of('ann')}:{keys['ann'][0]}"]
    await UserKeyDestroyer(brokers).destroy([of("ann")])
    _killed_unclean(tmp_path, brokers.all(USER_KEYS))
    assert (tmp_path / "0.sqlite-wal").stat().st_size
    store = UserKeyStore(tmp_path)
    store.open()
    assert store.key(keys["ann"][0]) is None
    assert gone not in on_disk(tmp_path)
    store.close()


def _killed_unclean(folder: Path, records: list[Record]) -> None:
    child = os.fork()
    if child == 0:
        try:
            store = UserKeyStore(folder)
            store.open()
            store._clean = lambda: None
            store.take(records)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


async def test_a_topic_that_was_made_anew_is_noticed_before_its_first_record(
    brokers: MemoryLog, tmp_path: Path
) -> None:
    ring = UserKeyIssuer(brokers, SECRET, folder=tmp_path)
    await ring.ready()
    before = ring.key_of(TENANT, of("ann"))
    await ring.acknowledged()
    await ring.refresh()
    assert ring.key_of(TENANT, of("ann")) == before
    await brokers.recreate(USER_KEYS)

    async def forgotten() -> bool:
        return ring.key(before[0]) is None

    await eventually(forgotten, "the old key is forgotten", 30)
    await ring.ready()
    after = ring.key_of(TENANT, of("ann"))
    assert after != before
    await ring.acknowledged()
    await ring.find([after[0]])
    assert ring.key(after[0]) == after[1]
    await ring.close()


@pytest.mark.parametrize("others", [0, 1, 5], ids=["empty", "as long", "longer"])
async def test_a_topic_made_anew_while_nobody_ran_is_noticed_at_the_start(
    others: int, brokers: MemoryLog, tmp_path: Path
) -> None:
    keys = await issue(brokers, "ann")
    await read_offsets(brokers, tmp_path, "ann", keys=keys)
    await brokers.recreate(USER_KEYS)
    names = [f"other{number}" for number in range(others)]
    keys |= await issue(brokers, *names)
    _, found = await read_offsets(brokers, tmp_path, "ann", *names, keys=keys)
    assert found == [None, *(keys[name][1] for name in names)]


async def test_keys_that_were_wrapped_anew_are_so_in_the_file(
    brokers: MemoryLog, tmp_path: Path
) -> None:
    new = b"n" * 32
    keys = await issue(brokers, "ann")
    (old,) = wrapped_in(brokers).values()
    ring = UserKeys(brokers, SECRET, new, folder=tmp_path)
    await ring.find([keys["ann"][0]])
    assert (await rewrap_keys(brokers, (new, SECRET))).rewrapped == 1
    await ring.refresh()
    await ring.close()
    assert old not in on_disk(tmp_path)
    alone = UserKeys(brokers, new, folder=tmp_path)
    await alone.find([keys["ann"][0]])
    assert alone.key(keys["ann"][0]) == keys["ann"][1]
    await alone.close()
    wrong = UserKeys(brokers, b"x" * 32, folder=tmp_path)
    with pytest.raises(TextsLocked, match="RATCHET_TEXT_KEY_FILE"):
        await wrong.find([keys["ann"][0]])
    await wrong.close()


async def test_a_destroyed_key_leaves_every_cache(brokers: MemoryLog) -> None:
    keys = UserKeyIssuer(brokers, SECRET)
    await keys.ready()
    body: dict[str, Any] = {"tenant": TENANT, "user_id": "ann", "value": "text"}
    assert keys.close_texts(body, "place")
    await keys.acknowledged()
    await keys.refresh()
    key_id, key = keys.key_of(TENANT, of("ann"))
    assert keys.key(key_id) == key
    assert not keys._unseen
    assert text_encryption._cipher.cache_info().currsize
    await UserKeyDestroyer(brokers).destroy([of("ann")])
    await keys.refresh()
    assert not text_encryption._cipher.cache_info().currsize
    assert keys.key(key_id) is None
    assert keys.key_of(TENANT, of("ann"))[0] != key_id
    await keys.close()


async def test_the_loop_s_thread_runs_no_sqlite(
    brokers: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known, new and erased people, none of them in memory."""
    await issue(brokers, *(f"user{number}" for number in range(50)))
    ours = EncryptingLog(brokers, UserKeyIssuer(brokers, SECRET), source="/test")
    theirs = DecryptingLog(brokers, UserKeys(brokers, SECRET))
    threads: list[int] = []
    connect = user_key_store._connection

    def traced(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.set_trace_callback(lambda _: threads.append(threading.get_ident()))
        return connection

    monkeypatch.setattr(user_key_store, "_connection", traced)
    await ours.append_many([rated(number) for number in range(100)])
    await UserKeyDestroyer(brokers).destroy([of("user7")])
    assert ours.issuer is not None
    await ours.issuer.refresh()
    await ours.append_many([rated(number) for number in range(100, 200)])
    texts: list[str] = []

    def note(record: Record) -> bool:
        texts.append(orjson.loads(record.value or b"")["value"])
        return False

    await read_to_end(theirs, FEEDBACK, timeout_s=30, keep=note)
    assert Counter(texts) == {"words": 198, "[encrypted]": 2}
    assert threads
    assert threading.get_ident() not in threads
    await ours.stop()
    await theirs.stop()


def rated(number: int) -> NewRecord:
    user = f"user{number % 60}"
    event = {"tenant": TENANT, "user_id": user, "value": "words"}
    return NewRecord(FEEDBACK, user, orjson.dumps(event), (("ce_id", str(number).encode()),))


async def test_what_a_thread_read_before_a_key_was_destroyed_is_not_kept(
    brokers: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    (key_id, _) = (await issue(brokers, "ann"))["ann"]
    keys = UserKeyIssuer(brokers, SECRET)
    await keys.refresh()
    loop = asyncio.get_running_loop()
    reads = {name: getattr(keys._store, name) for name in ("key", "keys_of")}

    async def destroyed() -> None:
        await UserKeyDestroyer(brokers).destroy([of("ann")])
        await keys.refresh()

    def late(name: str) -> Callable[[str], Any]:
        def read(asked: str) -> Any:
            found = reads[name](asked)
            asyncio.run_coroutine_threadsafe(destroyed(), loop).result(30)
            return found

        return read

    for name in reads:
        monkeypatch.setattr(keys._store, name, late(name))
    await asyncio.gather(keys.find([key_id]), keys.find_of({of("ann"): TENANT}))
    monkeypatch.undo()
    assert not keys._unwrapped
    assert keys.key(key_id) is None
    assert keys.key_of(TENANT, of("ann"))[0] != key_id
    await keys.close()


async def test_memory_does_not_grow_with_people(
    brokers: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_keys, "UNWRAPPED", 100)
    people = [sha256(str(number).encode()).hexdigest() for number in range(4_000)]
    ids: list[str] = []
    for start in range(0, len(people), 1000):
        issuer = UserKeyIssuer(brokers, SECRET)
        ids = [issuer.key_of(TENANT, subject)[0] for subject in people[start : start + 1000]]
        await issuer.acknowledged()
    keys = UserKeyIssuer(brokers, SECRET)
    await keys.ready()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for subject in people:
        keys.key_of(TENANT, subject)
    for key_id in ids:
        assert keys.key(key_id)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert used < 200_000, "a hundred keys"
    assert not keys._unseen
    assert not keys._pending
    await keys.close()


async def test_processes_that_share_a_folder_have_a_file_each(tmp_path: Path) -> None:
    stores = [UserKeyStore(tmp_path) for _ in range(3)]
    for one in stores:
        one.open()
    assert sorted(one.name for one in tmp_path.glob("*.sqlite")) == [
        "0.sqlite", "1.sqlite", "2.sqlite",
    ]  # fmt: skip
    for one in stores[:2]:
        one.close()
    old = time.time() - user_key_files.UNUSED_S - 1
    for number in (1, 2):
        os.utime(tmp_path / f"{number}.sqlite", (old, old))
    again = UserKeyStore(tmp_path)
    again.open()
    left = sorted(one.name for one in tmp_path.glob("*.sqlite"))
    assert left == ["0.sqlite", "2.sqlite"], "nobody had the second for a day"
    for one in (again, stores[2]):
        one.close()


async def test_a_folder_has_room_for_so_many_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_key_files, "PROCESSES", 1)
    first, second = UserKeyStore(tmp_path), UserKeyStore(tmp_path)
    first.open()
    with pytest.raises(OSError, match="another folder"):
        second.open()
    first.close()


async def test_an_answer_from_before_a_key_was_asked_for_does_not_destroy_it() -> None:
    """What the brokers said before the key was written may be taken up just after it is asked for."""
    feed = feed_of(MemoryLog())
    asked = time.monotonic()
    fetches = [asked + 0.01, asked + 0.5]

    def age_s() -> float:
        now = time.monotonic()
        return now - max((one for one in fetches if one <= now), default=-float("inf"))

    feed._tail = cast("Any", SimpleNamespace(age_s=age_s))
    feed.whole = True
    await feed.refresh()
    assert time.monotonic() >= fetches[1]


async def test_a_reader_waits_for_a_long_topic_as_long_as_keys_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that gave up would begin anew, and never come to the end."""
    monkeypatch.setattr(user_key_feed, "WHOLE_TIMEOUT_S", 0.1)
    feed = feed_of(MemoryLog())
    asked = time.monotonic()

    def age_s() -> float:
        feed._handed += 1
        feed._stored += 1
        return 0.0 if time.monotonic() - asked > 0.3 else float("inf")

    feed._tail = cast("Any", SimpleNamespace(age_s=age_s))
    feed.whole = True
    await feed.refresh()
    assert time.monotonic() - asked > 0.3


def feed_of(log: MemoryLog) -> UserKeyFeed:
    """A feed that does not run."""
    feed = UserKeyFeed(log, UserKeyStore(None), on_taken=lambda _: None, on_lost=lambda: None)
    feed.start = lambda: None
    return feed


def test_a_record_before_what_is_stored_is_another_topic_s(tmp_path: Path) -> None:
    store = UserKeyStore(tmp_path)
    store.open()
    record = Record(USER_KEYS, 0, 5, f"{'0' * 64}:{'1' * 16}", None, (), 1)
    store.take([record])
    store.take([record])
    for other in (replace(record, offset=4), replace(record, timestamp_ms=2)):
        with pytest.raises(TopicReplaced):
            store.take([other])
    store.close()


@pytest.mark.parametrize("error", [OSError("no tail"), RuntimeError("a fault")])
async def test_a_tail_that_ends_in_an_error_is_begun_again(
    error: Exception, brokers: MemoryLog
) -> None:
    keys = await issue(brokers, "ann")
    tail, failures = brokers.tail, 2

    def failing(*topics: str, **options: Any) -> Any:
        nonlocal failures
        failures -= 1
        if failures < 0:
            return tail(*topics, **options)
        raise error

    brokers.tail = failing
    ring = UserKeys(brokers, SECRET)
    await ring.find([keys["ann"][0]])
    assert ring.key(keys["ann"][0]) == keys["ann"][1]
    await asyncio.gather(ring.close(), ring.close())
