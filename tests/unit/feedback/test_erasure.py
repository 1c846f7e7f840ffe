"""Erasure of a person: what goes, what stays, whose it may be, and whatever kills it."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from fastapi import FastAPI

from services.feedback.erasure import api as erasure_api
from services.feedback.erasure import eraser as eraser_module
from services.feedback.erasure.api import UserApi, user_router
from services.feedback.erasure.eraser import ERASURE_MODELS, Eraser, erasures_of
from services.feedback.read_model.store import ReadModelStore
from services.training.preference_fold import PreferenceFold
from services.training.snapshot import MODELS
from shared.contracts.events.api_keys import ApiKeyIssued, Permission
from shared.contracts.events.erasures import ErasureCompleted, ErasureRequested
from shared.contracts.events.feedback import FeedbackType
from shared.contracts.subject import subject_of
from shared.contracts.topics import (
    ANNOTATIONS,
    ERASURES,
    EXAMPLES,
    FEEDBACK,
    INTERACTIONS,
    PREFERENCES,
    USER_KEYS,
    intake_topic,
    load_topics,
)
from shared.http.problems import handle_errors
from shared.kafka import user_key_upkeep
from shared.kafka.encrypted_log import EncryptingLog
from shared.kafka.envelope import UnreadableRecord, decode
from shared.kafka.log import (
    APPEND_TIMEOUT_S,
    EventLog,
    LogUnavailable,
    NewRecord,
    Position,
    Record,
    read_to_end,
)
from shared.kafka.user_key_issuer import UserKeyIssuer
from shared.kafka.user_key_upkeep import UserKeyDestroyer
from shared.keys import KeyRing, hash_key
from shared.media_store import MediaStore
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.support.aggregator import UP, at, feedback, interaction, vote
from tests.support.annotations import item
from tests.support.openapi_answers import hooks
from tests.support.read_model import LogBuilder

TENANT = "acme"
SECRET = "my mother's recipe"
ALL = (INTERACTIONS, FEEDBACK, EXAMPLES, PREFERENCES)

SENT_AT = datetime.now(UTC) - timedelta(hours=1)


class KilledLog(MemoryLog):
    """A log whose brokers are gone after so many writes, until it is `available` again."""

    left = 10**9

    async def append_many(
        self, records: Sequence[NewRecord], *, timeout_s: float = APPEND_TIMEOUT_S
    ) -> list[Position]:
        if self.left < len(records):
            raise LogUnavailable("killed")
        self.left -= len(records)
        return await super().append_many(records, timeout_s=timeout_s)


async def stored(log: EventLog) -> None:
    """What the router, the feedback service and the aggregator wrote of two people."""
    asked = [
        interaction("t1", user="u1", prompt=SECRET, completion=f"about {SECRET}"),
        interaction("t2", user="u2", prompt="How do I dry herbs?", completion="In the shade."),
        interaction("t3", user="u1", prompt=f"again {SECRET}", completion="No feedback on it."),
    ]
    builder = LogBuilder()
    builder.take(
        *asked,
        feedback("f1", "t1", UP, user="u1"),
        feedback("f2", "t2", UP, user="u2"),
        feedback("f3", "t2", FeedbackType.text_correction, {"corrected": SECRET}, user="u1"),
        vote("c1", user="u1"),
        vote("c2", user="u2"),
    )
    for event in asked:
        builder.add(INTERACTIONS, event.trace_id, event)
    for record in builder.records:
        await log.append(record.topic, key=record.key, value=record.value, headers=record.headers)


def request(*users: str, tenant: str = TENANT, erasure_id: str = "e1") -> ErasureRequested:
    return ErasureRequested(
        erasure_id=erasure_id,
        tenant=tenant,
        subjects=tuple(subject_of(tenant, user) for user in users or ("u1",)),
        actor="key-1",
        reason="asked by letter",
        requested_at=at(100.0),
    )


async def erase(log: MemoryLog, event: ErasureRequested, media: MediaStore | None = None) -> None:
    await Eraser(log, ManualClock(), media).handle(event, None)  # type: ignore[arg-type]


async def newest(log: EventLog, topic: str) -> dict[str, bytes]:
    """What a compacted topic is left with."""
    records = await read_to_end(log, topic, timeout_s=60)
    return {record.key: record.value or b"" for record in records}


async def completion(log: EventLog) -> ErasureCompleted:
    """The proof of the one erasure that was done."""
    (done,) = [
        one
        for one in await erasures_of(log, TENANT, request().subjects)
        if isinstance(one, ErasureCompleted)
    ]
    return done


async def trained_on(log: MemoryLog) -> PreferenceFold:
    fold = PreferenceFold("assistant")
    for record in await read_to_end(log, PREFERENCES, timeout_s=60):
        with contextlib.suppress(UnreadableRecord):
            fold.apply(decode(record.headers, record.value, MODELS))
    return fold


async def test_the_next_dataset_and_the_joined_examples_hold_nothing_of_the_person() -> None:
    log = MemoryLog()
    await stored(log)
    await erase(log, request())
    fold = await trained_on(log)
    people = [one.raters for one in (*fold.pairs, *fold.answers)]
    assert people == [("u2",)] * len(people)
    assert len(fold.pairs) == len(fold.answers) == 1
    examples = await newest(log, EXAMPLES)
    assert SECRET.encode() not in b"".join(examples.values())
    assert b"dry herbs" in examples["t2"]
    done = await completion(log)
    assert (done.traces, done.examples, done.products) == (4, 2, 3)


async def test_encrypted_texts_are_erased_alike_and_their_keys_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(user_key_upkeep, "ROLL_S", 0.0)
    brokers, clear = MemoryLog(), MemoryLog()
    await stored(clear)
    await erase(clear, request())
    keys = UserKeyIssuer(brokers, b"s" * 32)
    log = EncryptingLog(brokers, keys, source="/test")
    await stored(log)
    await Eraser(log, ManualClock()).handle(request(), None)  # type: ignore[arg-type]
    await keys.refresh()
    destroyed = {one.key for one in brokers.all(USER_KEYS) if one.value is None}
    assert {key.partition(":")[0] for key in destroyed} == {subject_of(TENANT, "u1")}
    for topic in ALL:
        assert all(SECRET.encode() not in (one.value or b"") for one in brokers.all(topic))
        readable = b"".join(one.value or b"" for one in await read_to_end(log, topic, timeout_s=60))
        assert SECRET.encode() not in readable
        assert len(brokers.all(topic)) == len(clear.all(topic))
    assert b"dry herbs" in (await newest(log, EXAMPLES))["t2"]
    assert await completion(log) == await completion(clear)
    await log.stop()


async def test_keys_that_others_issued_go_though_the_eraser_has_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(user_key_upkeep, "ROLL_S", 0.0)
    brokers = MemoryLog()
    log = EncryptingLog(brokers, UserKeyIssuer(brokers, b"s" * 32), source="/test")
    await stored(log)
    await log.stop()
    await erase(brokers, request())
    destroyed = {one.key for one in brokers.all(USER_KEYS) if one.value is None}
    assert {key.partition(":")[0] for key in destroyed} == {subject_of(TENANT, "u1")}
    assert (await completion(brokers)).erasure_id == "e1"


async def test_what_others_made_of_the_person_s_question_goes_too() -> None:
    """Votes on a comparison that somebody else opened, and answers to a sampled prompt."""
    log = MemoryLog()
    builder = LogBuilder()
    builder.take(
        vote("c1", user="u2").model_copy(update={"asker": "u1"}),
        vote("c2", user="u4").model_copy(update={"asker": "u3"}),
        interaction("i1-0", user="", prompt=SECRET),
        feedback("f1", "i1-0", UP, user="u2"),
        interaction("i9-0", user="", prompt=SECRET),  # of an item that the log has no more
        feedback("f9", "i9-0", UP, user="u2").model_copy(update={"asker": "u1"}),
    )
    sampled = item().model_copy(update={"asker": "u1", "tenant": TENANT})
    builder.add(ANNOTATIONS, sampled.item_id, sampled)
    for record in builder.records:
        await log.append(record.topic, key=record.key, value=record.value, headers=record.headers)
    await erase(log, request())
    fold = await trained_on(log)
    assert [pair.raters for pair in fold.pairs] == [("u4",)]
    assert not fold.answers
    assert SECRET.encode() not in b"".join((await newest(log, EXAMPLES)).values())


async def test_the_proof_and_the_sweeps_records_name_nobody() -> None:
    log = MemoryLog()
    await stored(log)
    before = set(await read_to_end(log, *ALL, timeout_s=60))
    await erase(log, request())
    written = set(await read_to_end(log, ERASURES, *ALL, timeout_s=60)) - before
    assert len(written) == 4 + 2 + 3 + 1
    assert not [record for record in written if b'"u1"' in (record.value or b"")]


async def test_of_another_tenant_nothing_goes_though_the_ids_are_the_same() -> None:
    log = MemoryLog()
    await stored(log)
    await erase(log, request(tenant="umbrella"))
    fold = await trained_on(log)
    assert len(fold.pairs) + len(fold.answers) == 5


@pytest.mark.parametrize("writes", range(9))
async def test_killed_after_any_write_the_next_try_ends_the_same(writes: int) -> None:
    calm, killed = MemoryLog(), KilledLog()
    for log in (calm, killed):
        await stored(log)
    await erase(calm, request())
    killed.left = writes
    with pytest.raises(LogUnavailable):
        await erase(killed, request())
    killed.left = 10**9
    for _ in range(2):  # the second time it is on record as done
        await erase(killed, request())
    expected, found = await trained_on(calm), await trained_on(killed)
    assert found.pairs == expected.pairs
    assert found.answers == expected.answers
    assert await newest(killed, EXAMPLES) == await newest(calm, EXAMPLES)
    done = [
        one
        for one in await erasures_of(killed, TENANT, request().subjects)
        if isinstance(one, ErasureCompleted)
    ]
    assert len(done) == 1


async def test_records_of_another_shape_do_not_hold_an_erasure_up() -> None:
    log = MemoryLog()
    await stored(log)
    bad: tuple[object, ...] = (
        [],
        {"tenant": TENANT, "user_id": ["u1"], "raters": 7, "feedback": [3], "traces": {}},
        {"tenant": TENANT, "asker": "u1", "trace_id": "broken"},
        {"tenant": TENANT, "user_id": "u1"},
        {"tenant": TENANT, "user_id": "u1", "trace_id": "t" * 5_000},
    )
    for topic in (ERASURES, *ALL):
        for number, body in enumerate(bad):
            key = request().subjects[0] if topic == ERASURES else f"bad-{number}"
            await log.append(topic, key=key, value=orjson.dumps(body))
    await erase(log, request())
    assert len((await trained_on(log)).pairs) == 1


async def test_two_at_one_time_end_as_one() -> None:
    once, twice = MemoryLog(), MemoryLog()
    for log in (once, twice):
        await stored(log)
    await erase(once, request())
    await erase(twice, request())
    await erase(twice, request(erasure_id="e2"))
    assert (await trained_on(twice)).pairs == (await trained_on(once)).pairs
    assert await newest(twice, EXAMPLES) == await newest(once, EXAMPLES)


async def test_of_several_at_once_one_sweeps_at_a_time_and_all_wait_for_segments_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = MemoryLog()
    await stored(log)
    eraser = Eraser(log, ManualClock())
    sweeping, most, closing = 0, 0, asyncio.Barrier(3)

    async def counted(event_log: EventLog, *topics: str, **rules: Any) -> list[Record]:
        nonlocal sweeping, most
        swept = INTERACTIONS in topics
        sweeping += swept
        most = max(most, sweeping)
        found = await read_to_end(event_log, *topics, **rules)
        sweeping -= swept
        return found

    async def closed(*_: object) -> int:
        await closing.wait()
        return 0

    monkeypatch.setattr(eraser_module, "read_to_end", counted)
    monkeypatch.setattr(UserKeyDestroyer, "destroy", closed)
    async with asyncio.timeout(60):
        await asyncio.gather(
            *(eraser.handle(request(erasure_id=f"e{number}"), None) for number in range(3))  # type: ignore[arg-type]
        )
    assert most == 1


async def test_the_read_model_s_file_has_no_text_of_the_person(tmp_path: Path) -> None:
    log = MemoryLog()
    await stored(log)
    path = tmp_path / "model.sqlite"
    model = ReadModelStore(path, max_bytes=100_000_000)

    async def fold() -> None:
        records = await read_to_end(log, FEEDBACK, EXAMPLES, PREFERENCES, timeout_s=60)
        positions = model.positions()
        fresh = [
            one for one in records if one.offset >= positions.get((one.topic, one.partition), 0)
        ]
        model.fold(fresh, not_before_ms=0)

    await fold()
    assert SECRET.encode() in _bytes_of(tmp_path)
    await erase(log, request())
    await fold()
    assert SECRET.encode() not in _bytes_of(tmp_path)
    assert b"dry herbs" in _bytes_of(tmp_path)


def _bytes_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


@asynccontextmanager
async def served(
    log: MemoryLog, *, tenants: Iterable[str] = ()
) -> AsyncIterator[httpx.AsyncClient]:
    """The endpoints; with tenants, a key `rk_<tenant>` for each that may operate."""
    keys = KeyRing(required=bool(tenants))
    for tenant in tenants:
        issued = ApiKeyIssued(
            key_id=f"key-{tenant}",
            sha256=hash_key(f"rk_{tenant}"),
            tenant=tenant,
            scopes=(Permission.operate if tenant != "reader" else Permission.feedback,),
            issued_at=at(0),
        )
        keys.apply(issued.key_id, issued.to_json())
    app = FastAPI()
    users = UserApi(log, keys, ManualClock(), pseudonym=lambda _, user: user)
    app.include_router(user_router(users))
    handle_errors(app)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://feedback", event_hooks=hooks("feedback")
    ) as client:
        yield client


def of(tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer rk_{tenant}"}


async def test_from_request_to_proof_over_http() -> None:
    log = MemoryLog()
    await stored(log)
    async with served(log, tenants=(TENANT, "umbrella", "reader")) as client:
        answer = await client.delete("/v1/users/u1", headers=of(TENANT))
        assert answer.status_code == 422  # a reason is kept on record
        url = "/v1/users/u1?reason=asked+by+letter"
        assert (await client.delete(url)).status_code == 401
        assert (await client.delete(url, headers=of("reader"))).status_code == 403
        answer = await client.delete(url, headers=of(TENANT))
        assert answer.status_code == 202
        (record,) = await read_to_end(log, ERASURES, timeout_s=60)
        event = decode(record.headers, record.value, ERASURE_MODELS)
        assert isinstance(event, ErasureRequested)
        assert event.actor == f"key-{TENANT}"
        status = await client.get("/v1/users/u1/erasures", headers=of(TENANT))
        assert [one["state"] for one in status.json()["erasures"]] == ["requested"]
        await erase(log, event)
        status = await client.get("/v1/users/u1/erasures", headers=of(TENANT))
        (found,) = status.json()["erasures"]
        assert (found["state"], found["reason"]) == ("completed", "asked by letter")
        (intake,) = (one for one in load_topics() if one.name == intake_topic("{tenant}"))
        kept = timedelta(milliseconds=int(intake.config["retention.ms"]))
        assert datetime.fromisoformat(found["clear_until"]) == event.requested_at + kept
        other = await client.get("/v1/users/u1/erasures", headers=of("umbrella"))
        assert other.json() == {"erasures": []}


async def test_an_export_is_all_of_the_person_and_of_nobody_else() -> None:
    log = MemoryLog()
    await stored(log)
    async with served(log, tenants=(TENANT, "umbrella")) as client:
        answer = await client.get("/v1/users/u2/export", headers=of(TENANT))
        lines = [orjson.loads(line) for line in answer.content.splitlines()]
        assert {line["topic"] for line in lines} == set(ALL)
        assert {line["event"].get("user_id", "u2") for line in lines} == {"u2"}
        other = await client.get("/v1/users/u2/export", headers=of("umbrella"))
        assert other.content == b""


async def test_a_long_export_is_written_to_disk_and_a_full_one_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = MemoryLog()
    await stored(log)
    monkeypatch.setattr(erasure_api, "SPOOL_BYTES", 1)
    async with served(log, tenants=(TENANT,)) as client, asyncio.timeout(60):
        whole = await client.get("/v1/users/u1/export", headers=of(TENANT))
        assert whole.text.count(SECRET) > 1
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
        refused = await client.get("/v1/users/u1/export", headers=of(TENANT))
        assert refused.status_code == 503
        assert "free the disk" in refused.text


async def test_with_the_log_away_nothing_is_promised() -> None:
    log = MemoryLog()
    log.available = False
    async with served(log) as client:
        answer = await client.delete("/v1/users/u1?reason=x")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]


async def test_media_of_the_person_go_and_those_of_others_stay(tmp_path: Path):
    log, store = MemoryLog(), MediaStore(tmp_path.as_uri())
    await stored(log)
    for user in ("u1", "u2"):
        store.put(TENANT, subject_of(TENANT, user), "a" * 64, b"picture", sent_at=SENT_AT)
    await erase(log, request("u1"), store)
    kept = [path.parent.name for path in tmp_path.rglob("a" * 64)]
    assert kept == [f"person={subject_of(TENANT, 'u2')}"]


async def test_an_erasure_is_not_done_while_media_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    log, store = MemoryLog(), MediaStore(tmp_path.as_uri())
    store.put(TENANT, subject_of(TENANT, "u1"), "a" * 64, b"picture", sent_at=SENT_AT)
    with monkeypatch.context() as patch:
        patch.setattr("fsspec.implementations.local.LocalFileSystem.rm", lambda *_, **__: 1 / 0)
        with pytest.raises(LogUnavailable, match="media"):
            await erase(log, request("u1"), store)
    assert not await newest(log, ERASURES)
    await erase(log, request("u1"), store)
    assert await newest(log, ERASURES)
    assert not list(tmp_path.rglob("a" * 64))
