"""Logs whose texts are encrypted by person: two writers, readers that come later, destroyed keys."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
from prometheus_client import CollectorRegistry

from shared.connection_settings import KafkaSettings
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackType
from shared.contracts.events.generations import GenerationFinished, GenerationRequested
from shared.contracts.subject import subject_of
from shared.contracts.topics import (
    DEAD_LETTERS,
    FEEDBACK,
    GENERATION_REQUESTS,
    GENERATION_RESULTS,
    USER_KEYS,
    intake_topic,
)
from shared.credentials import CredentialsUnreadable
from shared.kafka import user_key_feed, user_key_issuer, user_key_upkeep
from shared.kafka.deadletters import DeadLetters, list_dead_letters, replay
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
from shared.kafka.user_key_issuer import UserKeyIssuer
from shared.kafka.user_key_upkeep import Rewrapping, UserKeyDestroyer, rewrap_keys
from shared.kafka.user_keys import TextsLocked, UserKeys
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
    records = await read_to_end(cast("EventLog", log), FEEDBACK, timeout_s=60)
    return [orjson.loads(record.value or b"")["value"] for record in records]


def raw(brokers: MemoryLog, topic: str) -> list[Record]:
    return brokers.all(topic)


@pytest.fixture(autouse=True)
def roll_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_key_upkeep, "ROLL_S", 0.0)


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
    for one in writers:
        await one._issuer.ready()
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
    assert await UserKeyDestroyer(brokers).destroy([subject_of("default", "ann")]) == 1
    assert theirs._keys is not None
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
        keys.key_of("default", subject_of("default", f"user {people}"))
        return await store(records, **options)

    brokers.append_many = append_many
    key_id, _ = keys.key_of("default", subject_of("default", "ann"))
    async with asyncio.timeout(60):
        await keys.acknowledged()
    assert [one.key.partition(":")[2] for one in raw(brokers, USER_KEYS)] == [key_id]


@pytest.mark.parametrize("silent", [USER_KEYS, FEEDBACK])
async def test_brokers_that_are_silent_are_given_up_by_the_log_below(silent: str) -> None:
    """Which counts what timed out, and replaces a producer that is stuck."""
    brokers = MemoryLog()
    store, timed_out = brokers.append_many, 0

    async def append_many(
        records: Sequence[NewRecord], *, timeout_s: float = 5.0
    ) -> list[Position]:
        nonlocal timed_out
        if records[0].topic != silent:
            return await store(records)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.Event().wait()
        timed_out += 1
        raise LogUnavailable("silent")

    brokers.append_many = append_many
    ours = writer(brokers)
    assert ours.issuer is not None
    await ours.issuer.ready()
    event = feedback("ann")
    with pytest.raises(LogUnavailable):
        await ours.publish(FEEDBACK, key="t1", event=event, event_id="f1", timeout_s=0.5)
    assert timed_out == 1
    await ours.stop()


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
    tail = ours._issuer._feed._tail
    monkeypatch.setattr(tail, "age_s", lambda: user_key_issuer.STALE_S + 1)
    monkeypatch.setattr(user_key_feed, "WHOLE_TIMEOUT_S", 0.1)
    with pytest.raises(LogUnavailable, match="not read to the end"):
        await write(ours, "ann", 1)
    assert len(raw(brokers, FEEDBACK)) == 1
    await ours.stop()


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
    records = await read_to_end(cast("EventLog", theirs), FEEDBACK, timeout_s=60)
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


async def test_without_the_setting_texts_are_in_clear(tmp_path: Path) -> None:
    brokers = MemoryLog()
    off = KafkaSettings()
    log = encrypting(brokers, off, source="/test")
    await log.publish(FEEDBACK, key="t1", event=feedback("ann"), event_id="f0")
    assert TEXT.encode() in (raw(brokers, FEEDBACK)[0].value or b"")
    assert await values(decrypting(brokers, off)) == [TEXT]
    short = tmp_path / "key"
    short.write_text(f"{'s' * 32}\nshort")
    with pytest.raises(CredentialsUnreadable, match="RATCHET_TEXT_KEY_FILE"):
        decrypting(brokers, KafkaSettings(text_key_file=short))


@pytest.mark.parametrize("secrets", [(), (b"t" * 32,)], ids=["no secret", "another secret"])
async def test_a_reader_without_the_secret_stops_and_says_so(secrets: tuple[bytes, ...]) -> None:
    """Read as empty texts, a dataset would be one of empty answers."""
    brokers, registry = MemoryLog(), CollectorRegistry()
    ours = writer(brokers)
    await write(ours, "ann")
    keys = UserKeys(brokers, *secrets) if secrets else None
    theirs = DecryptingLog(brokers, keys, registry)
    with pytest.raises(TextsLocked, match="RATCHET_TEXT_KEY_FILE"):
        await values(theirs)
    assert registry.get_sample_value("ratchet_texts_locked_total", {"topic": FEEDBACK})
    await theirs.stop()
    await ours.stop()


async def test_a_secret_is_replaced_while_all_go_on() -> None:
    brokers = MemoryLog()
    old, new = b"o" * 32, b"n" * 32
    first = EncryptingLog(brokers, UserKeyIssuer(brokers, old), source="/test")
    await write(first, "ann")
    both = EncryptingLog(brokers, UserKeyIssuer(brokers, new, old), source="/test")
    await write(both, "ben", 1)
    waiting = DecryptingLog(brokers, UserKeys(brokers, old, new))
    assert await values(waiting) == [TEXT, TEXT]
    assert await rewrap_keys(brokers, (new, old)) == Rewrapping(1, 0)
    assert await rewrap_keys(brokers, (new, old)) == Rewrapping(0, 0)
    alone = DecryptingLog(brokers, UserKeys(brokers, new))
    assert await values(alone) == [TEXT, TEXT]
    assert (await rewrap_keys(brokers, (b"x" * 32,))).unreadable == 2
    for one in (first, both, waiting, alone):
        await one.stop()


@pytest.mark.parametrize("cut_off", [False, True])
async def test_a_key_destroyed_while_keys_are_rewrapped_stays_destroyed(cut_off: bool) -> None:
    """Also where the rewrapping is cut off behind the new record, and run again."""
    brokers = MemoryLog()
    old, new = b"o" * 32, b"n" * 32
    ours = EncryptingLog(brokers, UserKeyIssuer(brokers, old), source="/test")
    await write(ours, "ann")
    store = brokers.append_many

    async def append_many(records: Sequence[NewRecord], **options: Any) -> list[Position]:
        brokers.append_many = store
        await UserKeyDestroyer(brokers).destroy([subject_of("default", "ann")])
        positions = await store(records, **options)
        if cut_off:
            raise LogUnavailable("cut off")
        return positions

    brokers.append_many = append_many
    if cut_off:
        with pytest.raises(LogUnavailable):
            await rewrap_keys(brokers, (new, old))
        assert await rewrap_keys(brokers, (new, old)) == Rewrapping(0, 0)
    else:
        assert await rewrap_keys(brokers, (new, old)) == Rewrapping(1, 0)
    ended = len(raw(brokers, USER_KEYS))
    await rewrap_keys(brokers, (new, old))
    assert len(raw(brokers, USER_KEYS)) == ended
    late = DecryptingLog(brokers, UserKeys(brokers, new))
    assert await values(late) == ["[encrypted]"]
    for one in (ours, late):
        await one.stop()


@pytest.mark.parametrize("topic", [FEEDBACK, intake_topic("default")])
async def test_a_dead_letter_is_encrypted_for_whom_its_record_names(topic: str) -> None:
    brokers = MemoryLog()
    ours = writer(brokers)
    letters = DeadLetters(ours, service="test", redact=str, metrics=CollectorRegistry())
    body = {"trace_id": "t1", "tenant": "default", "type": "comment", "value": TEXT}
    value = orjson.dumps(body | {"user_id": "ann"})
    await letters.put(Record(topic, 0, 0, "t1", value, (), 0), "schema", f"{TEXT}: is wrong")
    await letters.put(Record(topic, 0, 1, "t1", b"no JSON", (), 0), "schema", "is wrong")
    stored = raw(brokers, DEAD_LETTERS)
    assert all(TEXT.encode() not in (one.value or b"") for one in stored)
    kept = await list_dead_letters(cast("EventLog", reader(brokers)))
    assert sorted(one.body for one in kept) == sorted([value.decode(), "no JSON"])
    await UserKeyDestroyer(brokers).destroy([subject_of("default", "ann")])
    kept = await list_dead_letters(cast("EventLog", reader(brokers)))
    assert sorted(one.body for one in kept) == ["", "no JSON"]
    await ours.stop()


async def test_a_dead_letter_that_is_no_event_is_replayed_as_it_came() -> None:
    brokers = MemoryLog()
    ours = writer(brokers)
    letters = DeadLetters(ours, service="test", redact=str, metrics=CollectorRegistry())
    nobodies = ({"tenant": "", "user_id": "ann"}, {"tenant": "t", "subjects": ["ann"]})
    bodies = [b"no JSON", b"[1]", *(orjson.dumps(one | {"value": TEXT}) for one in nobodies)]
    for offset, body in enumerate(bodies):
        await letters.put(Record(FEEDBACK, 0, offset, "t1", body, (), 0), "schema", "is wrong")
    assert await replay(ours, await list_dead_letters(brokers)) == len(bodies)
    assert [one.value for one in raw(brokers, FEEDBACK)] == bodies
    await ours.stop()


async def test_a_shadow_request_and_its_result_are_encrypted_for_who_asked() -> None:
    brokers = MemoryLog()
    ours, theirs = writer(brokers), reader(brokers)
    whose = {"tenant": "default", "subjects": (subject_of("default", "ann"),)}
    common = {"request_id": "r", "batch_id": "b", "purpose": "shadow", "version": "v", **whose}
    asked = GenerationRequested.model_validate(
        common
        | {
            "messages": [{"role": "user", "content": TEXT}],
            "shown": {"completion": TEXT, "latency_ms": 1},
            "sampling": {"response_format": {"type": TEXT}, "top_p": 0.5},
            "expires_at": "2026-11-18T09:00:00Z",
        }
    )
    made = GenerationFinished.model_validate(
        common | {"outcome": "ok", "completion": TEXT, "finished_at": "2026-11-18T09:00:00Z"}
    )
    for topic, event in ((GENERATION_REQUESTS, asked), (GENERATION_RESULTS, made)):
        await ours.publish(topic, key="r", event=event, event_id="r")
        (stored,) = raw(brokers, topic)
        assert TEXT.encode() not in (stored.value or b"")
        assert type(event).model_validate_json(stored.value or b"").encrypted is not None
        opened = await theirs.opened(stored)
        assert type(event).model_validate_json(opened.value or b"") == event
    await theirs.stop()
    await ours.stop()
