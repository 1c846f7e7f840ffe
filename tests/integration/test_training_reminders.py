"""Reminders on a real Kafka: two processes of training, a restart, and a receiver over HTTP."""

from __future__ import annotations

import asyncio
import signal
import uuid
from datetime import UTC, datetime
from pathlib import Path

from services.cli.status import total
from shared.contracts.events.base import Message
from shared.contracts.events.preferences import PairSource, PreferencePair
from shared.contracts.topics import PREFERENCES
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from tests.integration.test_training import Story, TrainingProcess
from tests.support.waiting import eventually
from tests.support.webhooks import SECRET, WebhookReceiver, is_signed


async def publish_pairs(kafka: str, model: str, numbers: range) -> None:
    log = KafkaLog(KafkaConnection(kafka), source="/ratchet/test")
    await log.start()
    try:
        for number in numbers:
            pair = PreferencePair(
                pair_id=f"{model}-{number}",
                tenant="default",
                model=model,
                messages=(Message(role="user", content=f"question {number}"),),
                chosen=f"a good answer {number}",
                rejected=f"a bad answer {number}",
                source=PairSource.vote,
                causes=(f"{model}-{number}:0",),
                raters=(f"rater-{number}",),
                created_at=datetime.now(UTC),
            )
            await log.publish(PREFERENCES, key=pair.pair_id, event=pair, event_id=pair.pair_id)
    finally:
        await log.stop()


async def until_collected(process: TrainingProcess, count: int) -> None:
    """Wait until the process has told where the plan stands with so many pairs in the week."""

    def collected() -> float | None:
        try:
            text = process.get("/metrics")[1]
        except OSError:
            return None
        return total(text, 'ratchet_training_week_pairs{figure="collected"}')

    await eventually(
        lambda: asyncio.to_thread(lambda: collected() == count), f"{count} pairs are counted"
    )


async def test_of_two_processes_one_reminds_and_none_again_after_a_restart(
    kafka: str, tmp_path: Path
) -> None:
    model = f"m{uuid.uuid4().hex[:8]}"
    stories = [Story(model=model, folder=tmp_path / name) for name in ("one", "two")]
    for story in stories:
        story.folder.mkdir()
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    await publish_pairs(kafka, model, range(3))
    receiver = WebhookReceiver()
    async with receiver.listening():
        settings = {
            "plan": "startup",
            "plan_categories": "creative",
            "webhook_urls": receiver.url,
            "webhook_secret_file": secret,
        }
        processes = [TrainingProcess(kafka, story, **settings) for story in stories]
        try:
            await eventually(lambda: receiver.got, "a reminder is posted")
            for process in processes:
                await until_collected(process, 3)
                process.end(signal.SIGTERM)
            before = [one["type"] for one in receiver.payloads]
            await publish_pairs(kafka, model, range(3, 5))
            processes.append(TrainingProcess(kafka, stories[0], **settings))
            await until_collected(processes[-1], 5)
        finally:
            for process in processes:
                process.end(signal.SIGKILL)
    assert [one["type"] for one in receiver.payloads] == before
    assert before.count("collection.missing") == 1
    assert len(before) == len(set(before)), "of a kind one"
    for headers, body in receiver.got:
        assert is_signed(headers, body)
    (missing,) = [one for one in receiver.payloads if one["type"] == "collection.missing"]
    lacks = missing["data"]["missing"]
    assert (lacks["pairs"] >= 97, lacks["category creative"]) == (True, 10)
    assert missing["text"].startswith(f"{model}: the next training still lacks ")
