"""A short life of a release, stopped in the middle of its work and written down as the fixture.

    python -m tests.support.upgrade.release FOLDER

`make.py` runs it with the code of the release. When it stops, a rollout is at a gate, each group has
records that it has not read, feedback waits for answers that are in the routers' spools, and a vote
and its versions are in Redis alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import httpx
import orjson
from redis.asyncio import Redis

from demo.counts import exported
from demo.recount import recount
from deploy.local.processes import ROOT
from deploy.local.stack import Stack
from services.training.dataset_store import DatasetStore
from services.training.sides import DatasetRules
from services.training.snapshot import take_snapshot
from shared.contracts.events.feedback import FeedbackSubmitted
from shared.contracts.events.training import TrainingMethod
from shared.contracts.events.versions import record_key
from shared.contracts.topics import VERSIONS, intake_topic
from shared.kafka.log import NewRecord
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from tests.support.command import ratchet
from tests.support.rollouts import version_record
from tests.support.upgrade.replicas import (
    CANDIDATE,
    FEEDBACKS,
    MODEL,
    ROUTERS,
    STABLE,
    WORKERS,
    serving_agent,
    upgrade_stack,
)
from tests.support.upgrade.users import UpgradeTally, UpgradeUsers
from tests.support.waiting import eventually

SEED = 4
ACTIONS, UNREAD_ACTIONS = 400, 60
UNREAD_INTAKE, MALFORMED, SPOOLED = 20, 3, 12
WAIT_S = 120.0
STRATEGY: dict[str, Any] = {
    "name": "gated",
    "steps": [
        {"setWeight": 20},
        {"pause": {}},
        {"analysis": {}},
        {"setWeight": 100},
        {"pause": {"duration": "1s"}},
    ],
}
KEPT = ("aggregator", "datasets", *ROUTERS, *FEEDBACKS, "intake", "rollout", "training")
"""Folders below the stack's data that outlive an upgrade, but the brokers'."""
FILES = ("voting-secret", "dump.rdb")


async def live(stack: Stack, folder: Path) -> dict[str, Any]:
    """Everything that happens; what must be found after the upgrade."""
    env = stack.environment()
    log = KafkaLog(KafkaConnection(stack.address("kafka")), source="/ratchet/test")
    await log.start()
    options = ("--scope", "infer", "--scope", "feedback", "--scope", "vote")
    made = ratchet("keys", "create", *options, "--own-trace-ids", "--name=shop", "--json", env=env)
    assert made.status == 0, made.err
    rollout = await _roll_out(stack, log)
    urls = {name: stack.url(name) for name in (*ROUTERS, *FEEDBACKS)}
    async with UpgradeUsers(urls, made.json["key"], seed=SEED, tally=UpgradeTally()) as users:
        await users.act(ACTIONS)
        await _counted(stack, users.tally)
        dataset = await take_snapshot(
            log, model=MODEL, method=TrainingMethod.dpo, rules=DatasetRules()
        )
        DatasetStore(env["RATCHET_DATASETS_URI"]).write(dataset)
        early = await _leave_unread(stack, log, users)
        await log.stop()
        await _leave_spooled(stack, users, early)
        assert users.problems == []
        tally = users.tally
    taken = ratchet("backup", "take", str(folder / "backup"), env=env)
    assert taken.status == 0, taken.err
    redis = Redis.from_url(env["RATCHET_REDIS_URL"])
    await redis.save()
    await redis.aclose()
    return {
        "key": made.json["key"],
        "rollout": rollout,
        "dataset": dataset.manifest.dataset_id,
        "dataset_sha256": dataset.manifest.sha256,
        "malformed": MALFORMED,
        "spooled": SPOOLED,
        "tally": vars(tally),
    }


async def _roll_out(stack: Stack, log: KafkaLog) -> str:
    """Register both versions and start the rollout; its id, once the candidate has its share."""
    async with httpx.AsyncClient(base_url=stack.url("rollout"), timeout=60) as http:

        async def stands(version: str, state: str) -> bool:
            answer = await http.get(f"/v1/versions/{version}")
            return answer.status_code == 200 and answer.json()["state"] == state

        for version, state in ((STABLE, "stable"), (CANDIDATE, "registered")):
            record = version_record(version)
            await log.publish(VERSIONS, key=record_key(version), event=record, event_id=version)
            await eventually(
                lambda version=version, state=state: stands(version, state),
                f"{version} is {state}",
                WAIT_S,
            )
        body = {"model": MODEL, "candidate": CANDIDATE, "strategy": STRATEGY, "reason": "upgrade"}
        begun = await http.post("/v1/rollouts", json=body)
        assert begun.status_code == 201, begun.text
        name = begun.json()["rollout_id"]

        async def gated() -> bool:
            found = (await http.get(f"/v1/rollouts/{name}")).json()
            return found["weight"] == 2000 and found["phase"] == "Paused"

        await eventually(gated, "the rollout is at its gate", WAIT_S)
    return name


async def _counted(stack: Stack, tally: UpgradeTally) -> None:
    """Wait until the aggregator has counted what the clients were promised."""

    async def whole() -> bool:
        async with httpx.AsyncClient() as http:
            text = (await http.get(f"{stack.url('aggregator')}/metrics")).text
        seen = {
            f"{version} {kind}": n for (version, kind), n in exported("", text).feedback.items()
        }
        seen.pop(" vote", None)
        return seen == dict(tally.feedback)

    await eventually(whole, "the aggregator has counted everything", WAIT_S)
    truth = await recount(stack.address("kafka"))
    assert not truth.unjoined


async def _leave_unread(stack: Stack, log: KafkaLog, users: UpgradeUsers) -> list[str]:
    """Stop the readers of the log and go on: they have much to read when they are back.

    The traces of feedback whose answers are still to come.
    """
    await _stop(stack, "aggregator")
    await users.act(UNREAD_ACTIONS)
    early = await users.give_early(SPOOLED)
    await _stop(stack, *_workers(), *FEEDBACKS)
    kind = (("ce_type", FeedbackSubmitted.ce_type.encode()),)
    given = users.feedback_of(UNREAD_INTAKE) + [{"trace_id": "t", "type": "odd"}] * MALFORMED
    topic = intake_topic("default")
    records = [NewRecord(topic, one["trace_id"], orjson.dumps(one), kind) for one in given]
    await log.append_many(records, timeout_s=WAIT_S)
    return early


async def _leave_spooled(stack: Stack, users: UpgradeUsers, traces: list[str]) -> None:
    """Let routers answer without brokers; the records stay in their spools."""
    await _stop(stack, "kafka")
    for trace in traces:
        await users.ask_as(trace)
    await _stop(stack, *ROUTERS)
    await asyncio.to_thread(stack.start, "kafka")


def _workers() -> list[str]:
    """Those that the release has: in the first fixture's, feedback reads the intake itself."""
    apart = (ROOT / "services/feedback/intake/__main__.py").exists()
    return [name for name in WORKERS if name != "intake" or apart]


async def _stop(stack: Stack, *names: str) -> None:
    """Stop services in a thread: the agent answers meanwhile."""
    for name in names:
        await asyncio.to_thread(stack.stop, name)


def _write(data: Path, folder: Path, expected: dict[str, Any]) -> None:
    """The fixture's two files from a stopped stack's data and its backup."""
    with tarfile.open(folder / "state.tar.xz", "w:xz") as state:
        state.add(folder / "backup", "backup")
        for name in (*KEPT, *FILES):
            if (data / name).exists():
                state.add(data / name, f"data/{name}", filter=_without_log)
    shutil.rmtree(folder / "backup")
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


def _without_log(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """RocksDB's own log names the folders of the machine, and no reader needs it."""
    return None if Path(member.name).name == "LOG" else member


async def _main(folder: Path) -> None:
    services = ["engine", *ROUTERS, *FEEDBACKS, *_workers()]
    with tempfile.TemporaryDirectory(prefix="release") as run_dir:
        async with serving_agent() as agent:
            stack = upgrade_stack(Path(run_dir), agent, services)
            try:
                await asyncio.to_thread(stack.up)
                expected = await live(stack, folder)
            finally:
                await asyncio.to_thread(stack.down)
            _write(Path(run_dir) / "data", folder, expected)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    asyncio.run(_main(parser.parse_args().folder.resolve()))
