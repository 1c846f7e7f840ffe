"""Accuracy on fresh votes on a real Kafka: a process of training, and a scorer over HTTP that fell behind."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from services.cli.status import total
from shared.contracts.events.versions import DatasetRef, RewardRecord, reward_key
from shared.contracts.topics import VERSIONS
from shared.intervals import TWO_SIDED_99, difference
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from tests.integration.test_training import Story, TrainingProcess
from tests.integration.test_training_reminders import publish_pairs
from tests.support.waiting import eventually

VOTES = 250


async def test_votes_after_the_reward_model_are_scored_and_the_fall_is_shown(
    kafka: str, tmp_path: Path
) -> None:
    model = f"m{uuid.uuid4().hex[:8]}"
    asked: list[list[str]] = []

    async def score(request: web.Request) -> web.Response:
        assert request.headers["authorization"] == "Bearer secret"
        items = (await request.json())["items"]
        asked.append([item["completion"] for item in items])
        scores = [1.0 if "bad" in item["completion"] else 0.0 for item in items]
        return web.json_response({"reward_model": f"{model}-reward-v1", "scores": scores})

    app = web.Application()
    app.router.add_post("/v1/score", score)
    key = tmp_path / "key"
    key.write_text("secret")
    await publish_pairs(kafka, model, range(VOTES))
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(TestServer(app))
        log = KafkaLog(KafkaConnection(kafka), source="/ratchet/test")
        await log.start()
        stack.push_async_callback(log.stop)
        record = RewardRecord(
            name=f"{model}-reward-v1",
            model=model,
            base="base",
            adapter_uri="memory://reward",
            adapter_sha256="0" * 64,
            dataset=DatasetRef(dataset_id="d", uri="d", sha256="0", rows=1),
            hyperparameters={},
            seed=0,
            code_revision="cafe",
            metrics={"accuracy": 0.8, "tested": 200.0},
            job_id="job",
            created_at=datetime.now(UTC),
        )
        await log.publish(VERSIONS, key=reward_key(record.name), event=record, event_id=record.name)
        process = TrainingProcess(
            kafka,
            Story(model=model, folder=tmp_path),
            min_pairs=0,
            inference_url=server.make_url(""),
            score_api_key_file=key,
            reward_fresh_votes=10,
        )
        stack.callback(process.end, signal.SIGKILL)

        def figure(name: str) -> float | None:
            try:
                return total(process.get("/metrics")[1], f"ratchet_training_{name}")
            except OSError:
                return None

        change = 'reward_model_ratio{figure="fresh_accuracy_change_high"}'
        fell = await eventually(
            lambda: asyncio.to_thread(figure, change), "a look is over", timeout_s=150
        )
        scored = await asyncio.to_thread(figure, 'fresh_votes_total{outcome="scored"}')
        accuracy = await asyncio.to_thread(figure, 'reward_model_ratio{figure="fresh_accuracy"}')
    assert fell == pytest.approx(difference((0, 64), (160, 200), TWO_SIDED_99)[1])
    assert accuracy == 0
    assert scored == len(asked) == 64
    assert len({chosen for chosen, _ in asked}) == len(asked), "each vote is scored once"
