"""Logs whose texts are encrypted by person: two writers, readers that come later, destroyed keys."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackType
from shared.contracts.subject import subject_of
from shared.contracts.topics import FEEDBACK, USER_KEYS
from shared.credentials import CredentialsUnreadable
from shared.kafka import user_keys
from shared.kafka.encrypted_log import DecryptingLog, EncryptingLog, decrypting, encrypting
from shared.kafka.log import (
    PER_TURN,
    EventLog,
    LogUnavailable,
    NewRecord,
    Position,
    Record,
    read_to_end,
)
from shared.kafka.user_keys import UserKeyIssuer, UserKeys, destroy_keys
from shared.settings import KafkaSettings
from shared.testing.log import MemoryLog

SECRET = b"s" * 32
TEXT = "Ann lives at the old mill"


def feedback(user: str, text: str = TEXT, number: int = 0) -> FeedbackSubmitted:
    return FeedbackSubmitted.model_validate(
        {
            "feedback_id": f"f{number}",
            "trace_id": "t1",
            "tenant": "default",
            "type": "comment",
            "value": text,
            "user_id": user,
            "submitted_at": "2026-11-18T09:00:00Z",
        }
    )


def writer(brokers: MemoryLog) -> EncryptingLog:
    return EncryptingLog(brokers, UserKeyIssuer(brokers, SECRET), source="/test")


def reader(brokers: MemoryLog, secret: bytes = SECRET) -> DecryptingLog:
    return DecryptingLog(brokers, UserKeys(brokers, secret))


async def write(log: EncryptingLog, user: str, number: int = 0, text: str = TEXT) -> None:
    event = feedback(user, text, number)
    await log.publish(FEEDBACK, key="t1", event=event, event_id=f"f{number}")


async def values(log: DecryptingLog) -> list[str]:
    records = await read_to_end(cast("EventLog", log), FEEDBACK, timeout_s=10)
    return [orjson.loads(record.value or b"")["value"] for record in records]


def raw(brokers: MemoryLog, topic: str) -> list[Record]:
    return brokers.all(topic)


@pytest.fixture(autouse=True)
def roll_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_keys, "ROLL_S", 0.0)


async def test_the_log_holds_no_text_and_a_reader_gets_it() -> None:
    brokers = MemoryLog()
    ours, theirs = writer(brokers), reader(brokers)
    await write(ours, "ann")
    assert all(TEXT.encode() not in (one.value or b"") for one in raw(brokers, FEEDBACK))
    assert await values(theirs) == [TEXT]
    await ours.stop()
    await theirs.stop()


async def test_the_first_events_of_two_writers_at_once_are_both_read() -> None:
    brokers = MemoryLog()
    writers = [writer(brokers), writer(brokers)]
    await asyncio.gather(*(write(one, "ann", n) for n, one in enumerate(writers)))
    assert len(raw(brokers, USER_KEYS)) == 2
    late = reader(brokers)
    assert await values(late) == [TEXT, TEXT]
    for one in (*writers, late):
        await one.stop()


async def test_a_person_keeps_the_key_over_restarts_and_writers() -> None:
    brokers = MemoryLog()
    for number in range(3):
        ours = writer(brokers)
        await write(ours, "ann", number)
        await ours.stop()
    assert len(raw(brokers, USER_KEYS)) == 1


async def test_destroyed_keys_close_all_of_one_person_s_texts_and_no_other_s() -> None:
    brokers = MemoryLog()
    ours, theirs = writer(brokers), reader(brokers)
    await write(ours, "ann", 1)
    await write(ours, "ben", 2, "Ben's words")
    assert await values(theirs) == [TEXT, "Ben's words"]
    assert await destroy_keys(brokers, [subject_of("default", "ann")]) == 1
    await theirs._keys.refresh()
    assert await values(theirs) == ["[encrypted]", "Ben's words"]
    await write(ours, "ann", 3, "Ann again")
    assert await values(theirs) == ["[encrypted]", "Ben's words", "Ann again"]
    await ours.stop()
    await theirs.stop()


async def test_keys_are_written_before_what_they_open() -> None:
    brokers = MemoryLog()
    ours = writer(brokers)
    brokers.max_record_bytes = 300  # the key's record is larger
    with pytest.raises(LogUnavailable):
        await write(ours, "ann")
    assert not raw(brokers, FEEDBACK)
    brokers.max_record_bytes = 10_000
    await write(ours, "ann")
    assert len(raw(brokers, USER_KEYS)) == 1
    await ours.stop()


async def test_a_writer_waits_for_no_key_that_was_given_out_after_its_own() -> None:
    """Where new people come faster than brokers acknowledge, there is always one more key."""
    brokers = MemoryLog()
    keys = UserKeyIssuer(brokers, SECRET)
    store, people = brokers.append_many, 0

    async def append_many(records: Sequence[NewRecord], **options: Any) -> list[Position]:
        nonlocal people
        people += 1
        keys.key_of("default", f"user {people}")
        return await store(records, **options)

    brokers.append_many = append_many
    key_id, _ = keys.key_of("default", "ann")
    async with asyncio.timeout(5):
        await keys.acknowledged()
    assert [one.key.partition(":")[2] for one in raw(brokers, USER_KEYS)] == [key_id]


async def test_a_large_batch_leaves_the_loop_to_others() -> None:
    brokers = MemoryLog()
    ours = writer(brokers)
    await write(ours, "ann")
    event = feedback("ann")
    headers = raw(brokers, FEEDBACK)[0].headers
    records = [NewRecord(FEEDBACK, "t1", event.to_json(), headers)] * (4 * PER_TURN)
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(turn())
    await ours.append_many(records)
    others.cancel()
    assert turns > 4
    await ours.stop()


async def test_another_secret_is_an_error_and_no_erasure() -> None:
    brokers = MemoryLog()
    ours = writer(brokers)
    await write(ours, "ann")
    wrong = UserKeys(brokers, b"t" * 32)
    key_id = orjson.loads(raw(brokers, USER_KEYS)[0].value or b"")["key_id"]
    with pytest.raises(LogUnavailable, match="RATCHET_TEXT_KEY_FILE"):
        await wrong.find([key_id])
    await wrong.close()
    await ours.stop()


async def test_a_writer_whose_secret_opens_no_key_writes_nothing() -> None:
    brokers = MemoryLog()
    ours = writer(brokers)
    await write(ours, "ann")
    theirs = EncryptingLog(brokers, UserKeyIssuer(brokers, b"t" * 32), source="/test")
    for _ in range(2):
        with pytest.raises(LogUnavailable, match="RATCHET_TEXT_KEY_FILE"):
            await write(theirs, "ben", 1)
    assert len(raw(brokers, USER_KEYS)) == len(raw(brokers, FEEDBACK)) == 1
    for one in (ours, theirs):
        await one.stop()


async def test_a_writer_who_lost_sight_of_the_keys_writes_nothing_under_old_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    brokers = MemoryLog()
    ours = writer(brokers)
    await write(ours, "ann")
    tail = ours._keys._follow()
    monkeypatch.setattr(tail, "age_s", lambda: user_keys.STALE_S + 1)
    monkeypatch.setattr(user_keys, "WHOLE_TIMEOUT_S", 0.1)
    with pytest.raises(LogUnavailable, match="not read to the end"):
        await write(ours, "ann", 1)
    assert len(raw(brokers, FEEDBACK)) == 1
    await ours.stop()


async def test_an_answer_from_before_a_key_was_asked_for_does_not_destroy_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the brokers said before the key was written may be taken up just after it is asked for."""
    keys = UserKeys(MemoryLog(), SECRET)
    asked = time.monotonic()
    fetches = [asked + 0.01, asked + 0.5]

    def age_s() -> float:
        now = time.monotonic()
        return now - max((one for one in fetches if one <= now), default=-math.inf)

    monkeypatch.setattr(keys, "_follow", lambda: SimpleNamespace(age_s=age_s))
    await keys.refresh()
    assert time.monotonic() >= fetches[1]


async def test_a_reader_waits_for_a_long_topic_as_long_as_keys_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that gave up would begin anew, and never come to the end."""
    monkeypatch.setattr(user_keys, "WHOLE_TIMEOUT_S", 0.1)
    keys = UserKeys(MemoryLog(), SECRET)
    asked = time.monotonic()

    def age_s() -> float:
        keys._take(Record(USER_KEYS, 0, 0, "s:k", None, (), 0))
        return 0.0 if time.monotonic() - asked > 0.3 else math.inf

    monkeypatch.setattr(keys, "_follow", lambda: SimpleNamespace(age_s=age_s))
    await keys.refresh()
    assert time.monotonic() - asked > 0.3


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value[: len(value) // 2 + 100],
        lambda value: value.replace(b'"keys":', b'"keys":1,"k":'),
        lambda value: value.replace(b'"data":"', b'"data":"A","d":"'),
    ],
    ids=["cut, as a long dead letter is", "no keys", "no base64"],
)
async def test_an_event_that_was_changed_is_handed_out_as_it_is(
    change: Callable[[bytes], bytes],
) -> None:
    brokers = MemoryLog()
    ours, theirs = writer(brokers), reader(brokers)
    await write(ours, "ann", text="word " * 100)
    (whole,) = raw(brokers, FEEDBACK)
    changed = change(whole.value or b"")
    assert b'"encrypted":{' in changed
    await brokers.append(FEEDBACK, key="t1", value=changed, headers=whole.headers)
    records = await read_to_end(cast("EventLog", theirs), FEEDBACK, timeout_s=10)
    assert records[1].value == changed
    for one in (ours, theirs):
        await one.stop()


async def test_a_key_s_record_that_is_no_base64_stops_nobody_else() -> None:
    brokers = MemoryLog()
    ours = writer(brokers)
    await write(ours, "ann")
    (record,) = raw(brokers, USER_KEYS)
    body = orjson.loads(record.value or b"") | {"wrapped": "!"}
    value = orjson.dumps(body)
    await brokers.append(USER_KEYS, key="0:1", value=value, headers=record.headers)
    late = reader(brokers)
    await write(ours, "ben", 1)
    assert await values(late) == [TEXT, TEXT]
    for one in (ours, late):
        await one.stop()


async def test_who_wrote_nothing_gets_no_key() -> None:
    brokers = MemoryLog()
    ours = writer(brokers)
    thumb = feedback("ann").model_copy(update={"type": FeedbackType.thumbs_up, "value": None})
    await ours.publish(FEEDBACK, key="t1", event=thumb, event_id="f0")
    assert not raw(brokers, USER_KEYS)
    await ours.stop()


async def test_what_names_nobody_stays_in_clear() -> None:
    brokers = MemoryLog()
    ours = writer(brokers)
    await write(ours, "")
    assert TEXT.encode() in (raw(brokers, FEEDBACK)[0].value or b"")
    await ours.stop()


def test_without_the_setting_the_log_is_itself(tmp_path: Path) -> None:
    brokers = MemoryLog()
    off = KafkaSettings()
    assert decrypting(brokers, off) is brokers
    assert encrypting(brokers, off, source="/test") is brokers
    short = tmp_path / "key"
    short.write_text("short")
    with pytest.raises(CredentialsUnreadable, match="RATCHET_TEXT_KEY_FILE"):
        decrypting(brokers, KafkaSettings(text_key_file=short))
