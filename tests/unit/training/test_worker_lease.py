"""The lease of a worker: only its holder does jobs, and who loses it leaves a job without an end."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.training.errors import JobsFolderTaken
from services.training.workspace import take
from shared.contracts.events.training import RunPhase
from shared.contracts.topics import TRAINING_JOBS
from shared.testing.lease import MemoryLease
from shared.testing.log import MemoryTail
from tests.support.waiting import eventually
from tests.unit.training.builders import request
from tests.unit.training.harness import TrainingHarness
from tests.unit.training.test_worker import ask, at_work, cancel, ends

HELD = "ratchet_training_lease_held"
WAITING = "ratchet_training_jobs_waiting"


async def test_a_standby_knows_all_and_does_what_waits_once_it_is_granted(
    harness: TrainingHarness,
) -> None:
    lease = MemoryLease(ours=False)
    await ask(harness, request("cancelled"))
    await ask(harness, request("done"))
    async with at_work(harness, lease=lease, min_pairs=1) as registry:
        await cancel(harness, "cancelled")
        await ask(harness, request("typo", hyperparameters={"learning_rat": 1}))
        await eventually(lambda: registry.get_sample_value(WAITING) == 3, "it knows the jobs")
        await eventually(
            lambda: registry.get_sample_value("ratchet_training_new_pairs", {"model": "assistant"}),
            "it shows the schedule's figures",
        )
        assert registry.get_sample_value(HELD) == 0
        assert harness.progress("") == []
        lease.grant()
        await eventually(lambda: len(ends(harness)) == 3, "what waits is ended")
    assert ends(harness) == [
        ("cancelled", RunPhase.failed),
        ("done", RunPhase.succeeded),
        ("typo", RunPhase.failed),
    ]


async def test_a_standby_asks_for_no_job(harness: TrainingHarness) -> None:
    lease = MemoryLease(ours=False)
    async with at_work(harness, lease=lease, min_pairs=51) as registry:
        await eventually(
            lambda: registry.get_sample_value("ratchet_training_new_pairs", {"model": "assistant"}),
            "the pairs are counted",
        )
        assert harness.log.all(TRAINING_JOBS) == []


async def test_who_loses_the_lease_leaves_its_job_to_the_next(
    harness: TrainingHarness, tmp_path: Path
) -> None:
    harness.plan({"hang": True})
    harness.settings = harness.settings.model_copy(update={"stall_s": 600.0})
    other_folder = tmp_path / "other"
    other_folder.mkdir()
    other, first, second = harness.replica(other_folder), MemoryLease(), MemoryLease(ours=False)
    await ask(harness, request("job"))
    async with at_work(harness, lease=first) as registry, at_work(other, lease=second):
        await eventually(lambda: harness.starts, "the holder's trainer starts")
        first.take()
        await eventually(lambda: registry.get_sample_value(HELD) == 0, "it stands by")
        assert ends(harness) == []
        second.grant()
        await eventually(lambda: ends(harness), "the other does the job")
    assert ends(harness) == [("job", RunPhase.succeeded)]
    assert (len(harness.starts), len(other.starts)) == (1, 1)
    assert len(harness.records()) == 2


async def test_while_the_brokers_are_silent_what_runs_goes_on_and_nothing_begins(
    harness: TrainingHarness,
) -> None:
    lease = MemoryLease()
    lease.known = False
    await ask(harness, request("job"))
    async with at_work(harness, lease=lease) as registry:
        await eventually(lambda: registry.get_sample_value(WAITING) == 1, "it knows the job")
        assert harness.starts == []
        harness.plan({"hang": True}, {})
        lease.known = True
        await eventually(lambda: harness.starts, "the trainer starts")
        lease.known = False
        await eventually(lambda: ends(harness), "the stalled trainer is started again and ends")
    assert ends(harness) == [("job", RunPhase.succeeded)]


async def test_jobs_wait_until_the_log_is_read_to_where_the_lease_was_granted(
    harness: TrainingHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The predecessor may have ended the job just before."""
    looks, age_s = 0, 3600.0

    def age(_: MemoryTail) -> float:
        nonlocal looks
        looks += 1
        return age_s

    monkeypatch.setattr(MemoryTail, "age_s", age)
    await ask(harness, request("job"))
    async with at_work(harness, lease=MemoryLease()) as registry:
        await eventually(lambda: registry.get_sample_value(WAITING) == 1, "it knows the job")
        seen = looks
        await eventually(lambda: looks > seen + 10, "it has looked whether it may begin")
        assert harness.starts == []
        age_s = 0.0
        await eventually(lambda: ends(harness), "the job is done")


def test_a_data_directory_has_one_replica(tmp_path: Path) -> None:
    with take(tmp_path), pytest.raises(JobsFolderTaken, match="its own RATCHET_DATA_DIR"):  # noqa: SIM117
        with take(tmp_path):
            pass
    with take(tmp_path):
        pass
