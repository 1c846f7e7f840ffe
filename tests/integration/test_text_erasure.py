"""Erasure with texts encrypted by person, on a real broker: one of 1,000 users, greped everywhere."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import httpx
import orjson
import pytest
from prometheus_client import CollectorRegistry

from deploy.local.stack import Stack
from shared.contracts.events.generations import GenerationFinished, GenerationRequested
from shared.contracts.subject import subject_of
from shared.contracts.topics import (
    GENERATION_REQUESTS,
    GENERATION_RESULTS,
    INTERACTIONS,
    QUALITY,
    USER_KEYS,
)
from shared.kafka.deadletters import DeadLetters
from shared.kafka.encrypted_log import EncryptingLog
from shared.kafka.envelope import encode
from shared.kafka.log import EventLog, NewRecord, Record, read_to_end
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.kafka.user_key_issuer import UserKeyIssuer
from tests.support.aggregator import interaction
from tests.support.waiting import eventually

pytestmark = [pytest.mark.verify, pytest.mark.timeout(600)]

USERS = 1000
PATIENCE_S = 90.0
GONE_WITHIN_S = 60.0
SECRET = "s" * 40
ERASED = "user7"
FIGURES = ("interactions", "interactions_with_feedback", "feedback", "corrections")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    run_dir = tmp_path_factory.mktemp("erasure")
    key_file = tmp_path_factory.mktemp("secret") / "text-key"
    key_file.write_text(SECRET)
    with Stack(
        run_dir,
        services=["feedback", "aggregator"],
        env={"RATCHET_TEXT_KEY_FILE": str(key_file), "RATCHET_DATA_DIR": str(run_dir / "data")},
        ports="free",
        say=lambda _: None,
    ) as started:
        yield started


@pytest.fixture
async def log(stack: Stack) -> AsyncIterator[EventLog]:
    """The log as the router writes it."""
    brokers = KafkaLog(KafkaConnection(stack.address("kafka")), source="/ratchet/test")
    keys = UserKeyIssuer(brokers, SECRET.encode())
    real = EncryptingLog(brokers, keys, source="/ratchet/test")
    await real.start()
    yield real
    await real.stop()


def word_of(user: str, what: str) -> str:
    """A word of one text alone: what repeats, compression writes once."""
    return sha256(f"{what} of {user}".encode()).hexdigest()[:20]


def pieces_of(text: str) -> list[str]:
    """Parts of a text: compression may write some of them by what stands elsewhere, but not all."""
    return [text[at : at + 16] for at in range(0, len(text) - 15, 16)]


def places_of(word: str, run_dir: Path) -> list[str]:
    """Files below the run directory that hold a word, as text or in UTF-16."""
    found: list[str] = []
    for path in run_dir.rglob("*"):
        try:
            data = path.read_bytes() if path.is_file() else b""
        except FileNotFoundError:  # the broker deletes segments meanwhile
            continue
        if word.encode() in data or word.encode("utf-16-le") in data:
            found.append(str(path.relative_to(run_dir)))
    return found


async def figures(log: EventLog) -> Counter[str]:
    """Sums of the newest day windows."""
    newest: dict[str, dict[str, int]] = {}
    for record in await read_to_end(log, QUALITY, timeout_s=PATIENCE_S):
        window = orjson.loads(record.value or b"{}")
        if window.get("window") == "1d":
            newest[record.key] = window
    return Counter({name: sum(one[name] for one in newest.values()) for name in FIGURES})


async def write_beside(log: EventLog) -> None:
    """A shadow request of each user's question, its result, and a dead letter about it."""
    letters = DeadLetters(log, service="test", redact=str, metrics=CollectorRegistry())
    records: list[NewRecord] = []
    now = datetime.now(UTC)
    for user in (ERASED, "user8"):
        text = word_of(user, "question")
        fields = {
            "request_id": user, "batch_id": "b", "purpose": "shadow", "version": "v",
            "tenant": "default", "subjects": [subject_of("default", user)],
        }  # fmt: skip
        asked = GenerationRequested.model_validate(
            fields | {"messages": [{"role": "user", "content": text}], "expires_at": now}
        )
        made = GenerationFinished.model_validate(
            fields | {"outcome": "failed", "error": text, "finished_at": now}
        )
        for topic, event in ((GENERATION_REQUESTS, asked), (GENERATION_RESULTS, made)):
            headers = encode(event, source="/test", event_id=user, time=now)
            records.append(NewRecord(topic, user, event.to_json(), headers))
        body = orjson.dumps({"tenant": "default", "user_id": user, "value": text})
        await letters.put(Record(INTERACTIONS, 0, 0, user, body, (), 0), "schema", text)
    await log.append_many(records, timeout_s=PATIENCE_S)


async def write_all(log: EventLog, client: httpx.AsyncClient) -> None:
    """Each user asks a question and corrects its answer; nobody's text is in clear."""
    records: list[NewRecord] = []
    now = datetime.now(UTC)
    for number in range(USERS):
        user = f"user{number}"
        event = interaction(
            f"t{number}", tenant="default", user=user,
            prompt=word_of(user, "question"), completion=f"An answer to {user}",
        ).model_copy(update={"started_at": now})  # fmt: skip
        headers = encode(event, source="/test", event_id=event.trace_id, time=event.started_at)
        records.append(NewRecord(INTERACTIONS, event.trace_id, event.to_json(), headers))
    nobody = interaction("t-nobody", tenant="default", prompt=word_of("", "question"))
    nobody = nobody.model_copy(update={"started_at": now})
    headers = encode(nobody, source="/test", event_id="t-nobody", time=nobody.started_at)
    await log.append_many(records, timeout_s=PATIENCE_S)
    # In a batch of its own: among others, compression may write a part of the word elsewhere.
    alone = NewRecord(INTERACTIONS, "t-nobody", nobody.to_json(), headers)
    await log.append_many([alone], timeout_s=PATIENCE_S)
    await write_beside(log)
    items = [
        {
            "trace_id": f"t{number}",
            "type": "text_correction",
            "value": {"corrected": f"{word_of(f'user{number}', 'correction')} and some more words"},
            "user_id": f"user{number}",
        }
        for number in range(USERS)
    ]
    answer = await client.post("/v1/feedback/batch", json={"items": items})
    assert answer.status_code in (202, 207), answer.text


async def test_of_1000_users_one_is_gone_from_every_file_in_a_minute(
    stack: Stack, log: EventLog, record_property: Callable[[str, object], None]
) -> None:
    words = [word_of(ERASED, what) for what in ("question", "correction")]
    others = [word_of("user8", what) for what in ("question", "correction")]
    async with httpx.AsyncClient(base_url=stack.url("feedback"), timeout=60) as client:
        await write_all(log, client)

        async def counted() -> bool:
            return (await figures(log))["corrections"] == USERS

        async def in_read_model() -> bool:
            page = await client.get("/v1/examples", params={"kind": "correction", "limit": 500})
            return page.status_code == 200 and len(page.json()["examples"]) == 500

        await eventually(counted, f"{USERS} corrections count", PATIENCE_S)
        await eventually(in_read_model, "the read model has them", PATIENCE_S)
        before = await figures(log)
        assert any(
            "kafka" in place for place in places_of(word_of("", "question"), stack.run_dir)
        ), "a text in clear would be found"
        clear = {place for word in words for place in places_of(word, stack.run_dir)}
        assert clear, "the read model holds texts"
        assert not [place for place in clear if "kafka" in place], "topics hold none, ever"
        keys = await read_to_end(log, USER_KEYS, timeout_s=PATIENCE_S)
        wrapped = [
            piece
            for one in keys
            if one.value and one.key.startswith(subject_of("default", ERASED))
            for piece in pieces_of(orjson.loads(one.value)["wrapped"])
        ]
        assert any(places_of(piece, stack.run_dir) for piece in wrapped)

        began = time.monotonic()
        asked = await client.delete(f"/v1/users/{ERASED}", params={"reason": "test"})
        assert asked.status_code == 202, asked.text

        def left() -> list[str]:
            return [one for word in (*words, *wrapped) for one in places_of(word, stack.run_dir)]

        while found := await asyncio.to_thread(left):
            assert time.monotonic() - began < GONE_WITHIN_S, found
            await asyncio.sleep(1)
        took_s = time.monotonic() - began
        record_property("erased_within_s", f"{took_s:.1f}")

        async def completed() -> bool:
            answer = await client.get(f"/v1/users/{ERASED}/erasures")
            return answer.json()["erasures"][0]["state"] == "completed"

        await eventually(completed, "the erasure has its proof", PATIENCE_S)
        assert await figures(log) == before
        exported = (await client.get("/v1/users/user8/export")).text
        assert all(word in exported for word in others)
        gone = (await client.get(f"/v1/users/{ERASED}/export")).text
        assert not any(word in gone for word in words)
