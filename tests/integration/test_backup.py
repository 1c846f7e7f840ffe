"""The disaster drill: topics and artefacts copied to an empty stack bring everything back."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from services.aggregator.settings import AggregatorSettings
from services.rollout.decision_log import DecisionLog
from services.training.dataset_store import DatasetStore
from services.training.rebuild import differences, rebuild
from services.training.sides import DatasetRules
from services.training.snapshot import take_snapshot
from shared.contracts.events.base import Event, Message
from shared.contracts.events.training import TrainingMethod
from shared.contracts.events.versions import record_key
from shared.contracts.events.votes import VoteCast
from shared.contracts.topics import (
    FEEDBACK,
    INTERACTIONS,
    PREFERENCES,
    QUALITY,
    ROLLOUT_HOLDS,
    ROLLOUTS,
    VERSIONS,
)
from shared.kafka.log import Record, read_to_end
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.registry.versions import Registry
from tests.support.aggregator import DOWN, UP, feedback, interaction, vote, withdrawn
from tests.support.aggregator_process import AggregatorProcess, send, total
from tests.support.command import ratchet
from tests.support.history import RolloutsHistory
from tests.support.rollouts import version_record
from tests.support.servers import Servers
from tests.support.waiting import eventually

pytestmark = [pytest.mark.verify, pytest.mark.timeout(300)]

TRACES = 60
WITHDRAWN = TRACES // 5
VOTES = 60
TRIMMED = 5
COUNTERS = (
    "ratchet_feedback_total",
    "ratchet_satisfaction_sum_total",
    "ratchet_satisfaction_count_total",
    "ratchet_votes_total",
    "ratchet_feedback_outcomes_total",
)


@asynccontextmanager
async def opened(bootstrap: str) -> AsyncIterator[KafkaLog]:
    log = KafkaLog(KafkaConnection(bootstrap), source="/ratchet/test")
    await log.start()
    try:
        yield log
    finally:
        await log.stop()


@asynccontextmanager
async def aggregating(bootstrap: str, folder: Path) -> AsyncIterator[AggregatorProcess]:
    worker = AggregatorProcess(bootstrap, folder).start()
    try:
        await worker.ready()
        yield worker
    finally:
        worker.stop()


@pytest.fixture
def empty_stack(tmp_path: Path) -> Iterator[str]:
    with Servers(tmp_path / "empty") as servers:
        yield servers.kafka()


def votes(prefix: str) -> list[VoteCast]:
    """Pairs whose answers differ, of as many people and prompts."""
    return [
        vote(
            f"{prefix}-vote-{number}",
            user=f"rater-{number}",
            left=f"It left the depot of street {number} and arrives tomorrow.",
            right=f"No idea about number {number}, ask somebody else please.",
        ).model_copy(
            update={"messages": (Message(role="user", content=f"Where is parcel {number}?"),)}
        )
        for number in range(VOTES)
    ]


async def live(log: KafkaLog, prefix: str) -> None:
    """A life of some days: traffic, feedback, edits, votes, versions, rollouts."""
    events: list[Event] = []
    for number in range(TRACES):
        trace = f"{prefix}-{number}"
        events.append(feedback(f"f{number}", trace, (UP, DOWN)[number % 2], tenant=prefix))
        if number % 5 == 0:
            events.append(withdrawn(f"f{number}", trace, (UP, DOWN)[number % 2], tenant=prefix))
    shown = [
        interaction(f"{prefix}-{number}", tenant=prefix, version=prefix) for number in range(TRACES)
    ]
    await send(log, INTERACTIONS, *shown)
    await send(log, FEEDBACK, *events, *votes(prefix))
    for version in (f"{prefix}-v1.0", f"{prefix}-v1.1"):
        record = version_record(version)
        await log.append(VERSIONS, key=record_key(version), value=record.to_json())
    for batch in RolloutsHistory(3, 6, 40).batches():
        await log.append_many(batch, timeout_s=60)


def place(record: Record) -> tuple[str, int, int]:
    return record.topic, record.partition, record.offset


async def trim(bootstrap: str) -> None:
    """Retention takes the first interactions."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    trimmed = [TopicPartition(INTERACTIONS, partition) for partition in range(4)]
    await admin.delete_records({one: RecordsToDelete(TRIMMED) for one in trimmed})
    await admin.close()


async def counted(worker: AggregatorProcess, version: str) -> None:
    """Waits until the aggregator counted feedback, withdrawals, scores and votes."""

    async def all_of_it() -> bool:
        metrics = await worker.metrics()
        outcomes = metrics["ratchet_feedback_outcomes_total"]
        scores = metrics["ratchet_satisfaction_count_total"]
        return (
            total(metrics["ratchet_feedback_total"], version=version) == TRACES
            and total(outcomes, outcome="withdrawn") >= WITHDRAWN
            and total(scores, version=version) + total(outcomes, outcome="score_capped") >= TRACES
            and total(metrics["ratchet_votes_total"]) >= VOTES
        )

    await eventually(all_of_it, "every feedback, withdrawal, score and vote counted", 90)


async def counters(worker: AggregatorProcess) -> dict[str, Any]:
    metrics = await worker.metrics()
    return {name: dict(metrics[name]) for name in COUNTERS}


async def registry(log: KafkaLog) -> dict[str, Any]:
    found = Registry()
    for record in await read_to_end(log, VERSIONS, timeout_s=60):
        found.apply(record.key, record.value)
    return {one.record.version: one for one in found.versions()}


async def rollouts(log: KafkaLog) -> tuple[int, dict[str, Any], dict[str, list[Any]]]:
    """The fencing token, each rollout's state, and its decisions."""
    decisions = DecisionLog()
    for topic in (ROLLOUTS, ROLLOUT_HOLDS):
        for record in await read_to_end(log, topic, timeout_s=60):
            decisions.apply(record)
    histories = {one.state.rollout_id: one for one in decisions.histories()}
    states = {name: one.state for name, one in histories.items()}
    return decisions.token, states, {name: one.all() for name, one in histories.items()}


async def windows(log: KafkaLog, version: str) -> dict[str, Any]:
    """The newest figures of each quality window."""
    newest = {
        record.key: json.loads(record.value)
        for record in await read_to_end(log, QUALITY, timeout_s=60)
        if record.value
    }
    return {key: row for key, row in newest.items() if row["version"] == version}


async def groups(bootstrap: str) -> dict[TopicPartition, int]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    found = await admin.list_consumer_group_offsets(AggregatorSettings().app_id)
    await admin.close()
    return {partition: committed.offset for partition, committed in found.items()}


async def test_a_backup_in_an_empty_stack_is_the_same_registry_rollouts_figures_and_datasets(
    kafka: str,
    empty_stack: str,
    tmp_path: Path,
    unique: str,
    record_property: Callable[[str, object], None],
) -> None:
    folder, before, after = tmp_path / "backup", tmp_path / "before", tmp_path / "after"
    async with opened(kafka) as log:
        await live(log, unique)
        async with aggregating(kafka, tmp_path / "first") as worker:
            await counted(worker, unique)

            async def emitted() -> bool:
                found = await windows(log, unique)
                return sum(row["feedback"] for key, row in found.items() if "+1d+" in key) == (
                    TRACES - WITHDRAWN
                )

            await eventually(emitted, "the quality windows")
            figures = await counters(worker)
        await trim(kafka)
        dataset = await take_snapshot(
            log, model="assistant", method=TrainingMethod.dpo, rules=DatasetRules()
        )
        DatasetStore(f"file://{before}").write(dataset)
        was = (await registry(log), await rollouts(log), await windows(log, unique))
        records = await read_to_end(log, FEEDBACK, INTERACTIONS, timeout_s=60)

    taken = ratchet("backup", "take", str(folder), env={"RATCHET_KAFKA_BOOTSTRAP": kafka})
    assert taken.status == 0, taken.err
    shutil.copytree(before, after)
    there = {"RATCHET_KAFKA_BOOTSTRAP": empty_stack}
    brought = ratchet("backup", "restore", str(folder), "--json", env=there)
    assert brought.status == 0, brought.err
    assert brought.json["topics"][PREFERENCES] >= VOTES
    again = ratchet("backup", "restore", str(folder), env=there)
    assert again.status == 2
    assert "empty topics only" in again.err

    assert await groups(empty_stack) == await groups(kafka)
    async with opened(empty_stack) as log:
        assert (await registry(log), await rollouts(log), await windows(log, unique)) == was
        copied = await read_to_end(log, FEEDBACK, INTERACTIONS, timeout_s=60)
        assert sorted(copied, key=place) == sorted(records, key=place)
        stored = DatasetStore(f"file://{after}").read(dataset.manifest.dataset_id)
        assert stored is not None
        assert stored.manifest.sha256 == dataset.manifest.sha256
        assert differences(stored, await rebuild(log, stored, ())) == []
        async with aggregating(empty_stack, tmp_path / "second") as worker:
            assert await counters(worker) == figures
            # And it goes on: a withdrawal of old feedback and a new one, each once.
            await send(log, FEEDBACK, withdrawn("f1", f"{unique}-1", DOWN, tenant=unique))
            await send(log, FEEDBACK, feedback("new", f"{unique}-1", UP, tenant=unique))

            async def went_on() -> bool:
                metrics = await worker.metrics()
                return total(metrics["ratchet_feedback_total"], version=unique) == TRACES + 1

            await eventually(went_on, "the new feedback counted once")
            outcomes = "ratchet_feedback_outcomes_total"
            withdrawals = total((await worker.metrics())[outcomes], outcome="withdrawn")
            assert withdrawals == total(figures[outcomes], outcome="withdrawn") + 1
    record_property("backup_records", sum(brought.json["topics"].values()))
