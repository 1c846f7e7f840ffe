"""The feedback service as a process of its own, with its broker taken away and itself killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import httpx
import pytest
from aiokafka import AIOKafkaProducer

from deploy.local.stack import Stack
from shared.contracts.topics import FEEDBACK, intake_topic
from shared.kafka.deadletters import list_dead_letters
from shared.kafka.log import read_to_end
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(400)

ANSWER_WITHIN_S = 5.0
STOPPED_WITHIN_S = 15.0
PATIENCE_S = 90.0
"""What a busy machine may take for what an idle one does in a second or two."""
SENDERS = 8
INTAKE_MIB = 160
INFLATED_BYTES = 250_000_000


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Kafka, Redis, feedback and intake: servers that may be stopped, so not the session's."""
    run_dir = tmp_path_factory.mktemp("feedback")
    env = {"RATCHET_INTAKE_MEMORY_MIB": str(INTAKE_MIB)}
    services = ["feedback", "intake"]
    with Stack(run_dir, services=services, env=env, ports="free", say=lambda _: None) as started:
        yield started


async def ids_in_the_log(stack: Stack) -> set[str]:
    """The feedback ids that the feedback topic holds."""
    log = KafkaLog(KafkaConnection(stack.address("kafka")), source="/ratchet/test")
    await log.start()
    try:
        records = await read_to_end(log, FEEDBACK, timeout_s=PATIENCE_S)
    finally:
        await log.stop()
    return {
        value.decode().rpartition(":")[0]
        for record in records
        for name, value in record.headers
        if name == "ce_id"
    }


class Senders:
    """Clients that send all the time, and remember what was acknowledged to them."""

    def __init__(self, url: str, name: str) -> None:
        self.acknowledged: set[str] = set()
        self.refused = 0
        self.lost = 0
        self.slowest_s = 0.0
        self._url = url
        self._name = name
        self._stop = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._send(n)) for n in range(SENDERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _send(self, number: int) -> None:
        sent = 0
        async with httpx.AsyncClient(base_url=self._url, timeout=60) as client:
            while not self._stop.is_set():
                sent += 1
                feedback_id = f"{self._name}-{number}-{sent}"
                body = {"trace_id": feedback_id, "type": "thumbs_up", "feedback_id": feedback_id}
                start = time.monotonic()
                try:
                    answer = await client.post("/v1/feedback", json=body)
                except httpx.TransportError:
                    self.lost += 1
                    await asyncio.sleep(0.05)  # a refused connection answers at once
                    continue
                self.slowest_s = max(self.slowest_s, time.monotonic() - start)
                if answer.status_code == 202:
                    self.acknowledged.add(feedback_id)
                else:
                    assert answer.status_code == 503, answer.text
                    assert int(answer.headers["retry-after"]) >= 1
                    self.refused += 1
                    await asyncio.sleep(0.02)


async def test_the_stack_s_voting_page_takes_those_who_are_invited(stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=stack.url("feedback"), timeout=60) as client:
        assert (await client.get("/vote/")).status_code == 401
        invited = await client.post("/v1/invites", json={"user_id": "rosa"})
        assert invited.status_code == 201
        page = await client.get(invited.json()["path"], follow_redirects=True)
        assert page.status_code == 200
        assert "rosa" in page.text
        assert (await client.get("/vote/static/voting.js")).status_code == 200
        progress = await client.get("/vote/api/progress")
        assert progress.json()["today"] == 0


async def test_a_person_is_erased_with_a_proof_and_the_read_model_forgets(stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=stack.url("feedback"), timeout=60) as client:
        body = {
            "trace_id": "t-erased",
            "type": "text_correction",
            "value": {"corrected": "a private word"},
            "user_id": "u/erased",
        }
        stored = await client.post("/v1/feedback", json=body)
        assert stored.status_code == 202, stored.text
        path = f"/v1/feedback/{stored.json()['feedback_id']}"

        async def known() -> bool:
            return (await client.get(path)).status_code == 200

        async def forgotten() -> bool:
            return (await client.get(path)).status_code == 404

        await eventually(known, "it is in the read model", PATIENCE_S)
        person = "/v1/users/u%2Ferased"
        exported = await client.get(f"{person}/export")
        assert "a private word" in exported.text
        asked = await client.delete(person, params={"reason": "asked by letter"})
        assert asked.status_code == 202, asked.text

        async def completed() -> bool:
            (found,) = (await client.get(f"{person}/erasures")).json()["erasures"]
            return found["state"] == "completed" and found["traces"] == 1

        await eventually(completed, "the erasure is completed", PATIENCE_S)
        await eventually(forgotten, "the read model forgot", PATIENCE_S)


async def test_without_kafka_everyone_is_told_in_time_and_it_recovers(stack: Stack) -> None:
    url = stack.url("feedback")
    async with Senders(url, "away") as senders:
        await eventually(lambda: len(senders.acknowledged) > 50, "feedback is accepted", PATIENCE_S)
        await asyncio.to_thread(stack.stop, "kafka")
        before = senders.refused
        await eventually(lambda: senders.refused > before + 200, "refusals", timeout_s=PATIENCE_S)
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            assert (await client.get("/readyz")).status_code == 503
            assert (await client.get("/healthz")).status_code == 200, "no reason to restart"
            metrics = (await client.get("/metrics")).text
        waiting = next(
            line for line in metrics.splitlines() if line.startswith("ratchet_ingestion_waiting")
        )
        assert float(waiting.split()[1]) <= SENDERS
        await asyncio.to_thread(stack.start, "kafka")
        known = len(senders.acknowledged)
        await eventually(
            lambda: len(senders.acknowledged) > known + 50, "recovery", timeout_s=PATIENCE_S
        )
    assert senders.slowest_s < ANSWER_WITHIN_S
    assert senders.acknowledged <= await ids_in_the_log(stack)
    await asyncio.to_thread(stack.wait_ready, "feedback", PATIENCE_S)


async def test_killed_under_load_every_202_is_in_the_log(stack: Stack) -> None:
    async with Senders(stack.url("feedback"), "killed") as senders:
        for _ in range(3):
            known = len(senders.acknowledged)
            await eventually(
                lambda known=known: len(senders.acknowledged) > known + 200,
                "feedback is accepted",
                timeout_s=PATIENCE_S,
            )
            stack.kill("feedback")
        await asyncio.to_thread(stack.wait_ready, "feedback", PATIENCE_S)
    assert senders.lost > 0
    assert len(senders.acknowledged) > 600
    missing = senders.acknowledged - await ids_in_the_log(stack)
    assert not missing


async def test_stopping_is_quick_and_answers_what_was_asked(stack: Stack) -> None:
    async with Senders(stack.url("feedback"), "stopped") as senders:
        await eventually(lambda: len(senders.acknowledged) > 20, "feedback is accepted", PATIENCE_S)
        start = time.monotonic()
        await asyncio.to_thread(stack.stop, "feedback")
        took_s = time.monotonic() - start
        await asyncio.to_thread(stack.start, "feedback")
    assert took_s < STOPPED_WITHIN_S
    assert senders.acknowledged <= await ids_in_the_log(stack)


def folding_processes(stack: Stack) -> list[int]:
    """Process ids of the stack's read model."""
    data = f"RATCHET_DATA_DIR={stack.run_dir}".encode()
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            if (
                b"services.feedback.read_model" in command
                and data in (folder / "environ").read_bytes()
            ):
                found.append(int(folder.name))
    return found


async def test_what_was_accepted_can_be_asked_for_whatever_is_killed(stack: Stack) -> None:
    """The read model follows the log through kills of its process and of the service."""
    async with httpx.AsyncClient(base_url=stack.url("feedback"), timeout=60) as client:

        async def send(name: str) -> None:
            body = {"trace_id": name, "type": "rating", "value": 4, "feedback_id": name}
            assert (await client.post("/v1/feedback", json=body)).status_code == 202

        async def state_of(name: str) -> str:
            try:
                answer = await client.get(f"/v1/feedback/{name}")
            except httpx.TransportError:
                return "away"
            return answer.json().get("state", "") if answer.status_code == 200 else ""

        async def found(*names: str) -> bool:
            return all([await state_of(name) == "waiting" for name in names])

        await send("asked-1")
        await eventually(lambda: found("asked-1"), "the first is found", PATIENCE_S)
        (process,) = folding_processes(stack)
        os.kill(process, signal.SIGKILL)
        await send("asked-2")
        await eventually(lambda: found("asked-1", "asked-2"), "found again", PATIENCE_S)
        stack.kill("feedback")
        await asyncio.to_thread(stack.wait_ready, "feedback", PATIENCE_S)
        await send("asked-3")
        names = ("asked-1", "asked-2", "asked-3")
        await eventually(lambda: found(*names), "found after a restart", PATIENCE_S)
        (process,) = folding_processes(stack)
        assert (await client.post("/v1/read-model/reindex")).status_code == 202
        await eventually(
            lambda: folding_processes(stack) not in ([], [process]), "a new process", PATIENCE_S
        )
        await eventually(lambda: found(*names), "found after a rebuild", PATIENCE_S)


async def test_a_batch_that_inflates_ends_neither_http_nor_the_intake_for_good(
    stack: Stack,
) -> None:
    bootstrap, topic = stack.address("kafka"), intake_topic("default")
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        compression_type="gzip",
        max_request_size=2 * INFLATED_BYTES,
        max_batch_size=2 * INFLATED_BYTES,
    )
    await producer.start()
    feedback, intake = stack.pid("feedback"), stack.pid("intake")
    try:
        bomb = await producer.send_and_wait(topic, b" " * INFLATED_BYTES, partition=0)
        body = b'{"trace_id": "t-after", "type": "thumbs_up", "feedback_id": "f-after"}'
        await producer.send_and_wait(topic, body, partition=0)
    finally:
        await producer.stop()

    async def taken() -> bool:
        return "f-after" in await ids_in_the_log(stack)

    await eventually(taken, "the record behind the batch is taken", PATIENCE_S)
    log = KafkaLog(KafkaConnection(bootstrap), source="/ratchet/test")
    await log.start()
    letters = await list_dead_letters(log, source_topic=topic)
    await log.stop()
    assert [(letter.source_offset, letter.reason) for letter in letters] == [
        (bomb.offset, "handler")
    ]
    assert stack.pid("feedback") == feedback
    assert stack.pid("intake") != intake
