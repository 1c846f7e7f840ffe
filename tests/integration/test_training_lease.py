"""Several replicas of training on a real Kafka: one holds the lease and does the jobs."""

from __future__ import annotations

import json
import signal
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from services.cli.status import total
from services.training.jobs import FINAL
from shared.contracts.events.training import RunPhase, TrainingProgress
from shared.contracts.events.versions import (
    Lifecycle,
    VersionRecord,
    VersionState,
    record_key,
    state_key,
)
from shared.contracts.topics import PREFERENCES, TRAINING_JOBS, TRAINING_RUNS, VERSIONS
from shared.kafka.log import read_events
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.registry.adapters import publish
from tests.integration.test_training import Story, TrainingProcess
from tests.support.waiting import eventually
from tests.unit.training.builders import NOW, example_event, pair_event, record, request
from tests.unit.training.harness import FAKE

GROUP = "ratchet.training"
SESSION_S = 6
TAKEOVER_S = 60.0
"""Within which another replica has done a job of one that is gone; a busy machine starts slowly."""


class TrainingReplicas:
    """Replicas of training for one model, with stores in common and a disk each."""

    def __init__(self, kafka: str, log: KafkaLog, model: str, folder: Path) -> None:
        self.kafka = kafka
        self.log = log
        self.model = model
        self.folder = folder
        self.replicas: list[TrainingReplica] = []

    def start(self, name: str, *plan: dict[str, Any]) -> TrainingReplica:
        replica = TrainingReplica(self, name, plan)
        self.replicas.append(replica)
        return replica

    async def stock(self) -> None:
        """A stable version, and pairs enough for the next one."""
        parent, name = self.folder / "parent", f"{self.model}-v1.0"
        parent.mkdir()
        (parent / "adapter_model.safetensors").write_bytes(b"weights of the parent")
        uri = f"file://{self.folder}/adapters/{name}"
        sha256 = publish(parent, uri)
        made = record(name, model=self.model, adapter_uri=uri, adapter_sha256=sha256)
        stable = VersionState(
            version=name, model=self.model, state=Lifecycle.stable, token=0, at=NOW
        )
        for key, event in ((record_key(name), made), (state_key(name), stable)):
            await self.log.publish(VERSIONS, key=key, event=event, event_id=key)
        given = [
            *(pair_event(n) for n in range(60)),
            *(pair_event(100 + n, panel="judge") for n in range(40)),
            *(example_event(n) for n in range(60)),
        ]
        for one in given:
            own = one.model_copy(
                update={"model": self.model, "pair_id": f"{self.model}-{one.pair_id}"}
            )
            await self.log.publish(PREFERENCES, key=own.pair_id, event=own, event_id=own.pair_id)

    async def ask(self, job_id: str) -> None:
        job = request(f"{self.model}-{job_id}", model=self.model)
        await self.log.publish(TRAINING_JOBS, key=job.job_id, event=job, event_id=job.job_id)

    async def ends(self) -> list[tuple[str, RunPhase]]:
        said = await read_events(self.log, (TRAINING_RUNS,), TrainingProgress, timeout_s=30)
        return [
            (one.job_id.removeprefix(f"{self.model}-"), one.phase)
            for one in said
            if one.job_id.startswith(self.model) and one.phase in FINAL
        ]

    async def versions(self) -> list[str]:
        found = await read_events(self.log, (VERSIONS,), VersionRecord, timeout_s=30)
        return [one.version for one in found if one.model == self.model]

    async def members(self) -> int:
        """How many replicas are in the group, once it is at rest."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka)
        await admin.start()
        try:
            answers: list[Any] = await admin.describe_consumer_groups([GROUP])
        finally:
            await admin.close()
        (_, _, state, _, _, members, *_) = answers[0].groups[0]
        return len(members) if state == "Stable" else -1


class TrainingReplica:
    """One process of training whose trainer is played, by a plan."""

    def __init__(
        self, deployment: TrainingReplicas, name: str, plan: tuple[dict[str, Any], ...]
    ) -> None:
        self.folder = deployment.folder / name
        self.folder.mkdir()
        (self.folder / "plan.json").write_text(json.dumps(plan))
        python = self.folder / "python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        self._process = TrainingProcess(
            deployment.kafka,
            Story(deployment.model, self.folder, store=deployment.folder),
            python=python,
            min_pairs=0,
            gate='{"min_prompts": 5, "min_judge_pairs": 10}',
            stall_s=600,
            lease_s=SESSION_S,
        )

    @property
    def starts(self) -> int:
        path = self.folder / "starts.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def holds(self) -> bool:
        try:
            return total(self._process.get("/metrics")[1], "ratchet_training_lease_held") == 1
        except OSError:
            return False

    def ready(self) -> str:
        """What readiness says of a replica that is ready."""
        try:
            status, said = self._process.get("/readyz")
        except OSError:
            return ""
        return said if status == 200 else ""

    def says(self, event: str) -> bool:
        (output,) = self.folder.glob("service-*.log")
        return event in output.read_text()

    def signal(self, number: int) -> None:
        self._process.process.send_signal(number)

    def end(self, number: int) -> None:
        self._process.end(number)


@pytest.fixture
async def deployment(kafka: str, unique: str, tmp_path: Path) -> AsyncIterator[TrainingReplicas]:
    log = KafkaLog(KafkaConnection(kafka), source="/ratchet/test")
    await log.start()
    made = TrainingReplicas(kafka, log, unique, tmp_path)
    await made.stock()
    try:
        yield made
    finally:
        for replica in made.replicas:
            replica.end(signal.SIGKILL)
        await log.stop()


async def held(replica: TrainingReplica) -> None:
    await eventually(replica.holds, "the replica holds the lease", timeout_s=TAKEOVER_S)


async def joined(deployment: TrainingReplicas, count: int) -> None:
    async def stable() -> bool:
        return await deployment.members() == count

    await eventually(stable, f"{count} replicas are in the group", timeout_s=TAKEOVER_S)


async def ended(deployment: TrainingReplicas, *jobs: str) -> None:
    async def all_ended() -> bool:
        return [name for name, _ in await deployment.ends()] == [*jobs]

    await eventually(all_ended, f"{jobs} end, in this order and once", timeout_s=TAKEOVER_S)


async def test_one_that_joins_interrupts_nothing_and_does_the_job_of_a_holder_that_is_killed(
    deployment: TrainingReplicas,
) -> None:
    first = deployment.start("first", {"hang": True})
    await held(first)
    await deployment.ask("job")
    await eventually(lambda: first.starts == 1, "its trainer runs", timeout_s=TAKEOVER_S)

    second = deployment.start("second", {})
    await joined(deployment, 2)
    await eventually(second.ready, "a standby is ready", timeout_s=TAKEOVER_S)
    assert "standby" in second.ready()
    assert first.holds()
    assert not first.says("job.left")
    assert (first.starts, second.starts) == (1, 0)

    first.end(signal.SIGKILL)
    await ended(deployment, "job")
    await held(second)
    assert "standby" not in second.ready()
    assert (first.starts, second.starts) == (1, 1)
    await deployment.ask("next")
    await ended(deployment, "job", "next")
    assert await deployment.ends() == [("job", RunPhase.succeeded), ("next", RunPhase.succeeded)]
    assert await deployment.versions() == [f"{deployment.model}-v1.{n}" for n in range(3)]


async def test_a_holder_that_stood_still_leaves_its_job_and_takes_over_again_later(
    deployment: TrainingReplicas,
) -> None:
    first = deployment.start("first", {"hang": True}, {})
    await held(first)
    second = deployment.start("second", {})
    await joined(deployment, 2)
    await deployment.ask("job")
    await eventually(lambda: first.starts == 1, "its trainer runs", timeout_s=TAKEOVER_S)

    first.signal(signal.SIGSTOP)
    await ended(deployment, "job")
    first.signal(signal.SIGCONT)
    await eventually(lambda: first.says("job.left"), "it leaves its job", timeout_s=TAKEOVER_S)
    await joined(deployment, 2)
    # A renewal may be on its way after the group's change; the lease is nobody else's meanwhile.
    await held(second)
    assert not first.holds()
    assert not second.says("lease.lost")

    second.end(signal.SIGTERM)
    await held(first)
    await deployment.ask("next")
    await ended(deployment, "job", "next")
    assert (first.starts, second.starts) == (2, 1)
    assert await deployment.versions() == [f"{deployment.model}-v1.{n}" for n in range(3)]


async def test_a_replica_does_not_start_in_the_folder_of_another(
    deployment: TrainingReplicas,
) -> None:
    first = deployment.start("first")
    await eventually(first.ready, "it is ready", timeout_s=TAKEOVER_S)
    twin = TrainingProcess(deployment.kafka, Story(deployment.model, first.folder))
    assert twin.process.wait(timeout=TAKEOVER_S) == 1
    twin.end(signal.SIGKILL)
    said = (first.folder / f"service-{twin.port}.log").read_text()
    assert "give each its own RATCHET_DATA_DIR" in said
