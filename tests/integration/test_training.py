"""Training on a real Kafka with a tiny random model: SFT, a scheduled DPO killed twice, the gate.

One story is told once a session; each test looks at another side of it.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.cli import version_compare, version_export
from services.inference.adapter_cache import AdapterCache
from services.inference.base_files import BaseFiles
from services.inference.errors import NoRewardModel
from services.inference.metrics import InferenceMetrics
from services.inference.scorer import Scorer
from services.training.dataset_store import DatasetStore
from services.training.trainers.job import read_rows
from services.training.workspace import Workspace
from shared.clock import SystemClock
from shared.contracts.events.base import Message
from shared.contracts.events.preferences import PairSource, PreferencePair, UnpairedExample
from shared.contracts.events.training import (
    RunPhase,
    TrainingMethod,
    TrainingProgress,
    TrainingRequested,
)
from shared.contracts.events.versions import (
    Lifecycle,
    VersionRecord,
    VersionState,
    record_key,
    settings_key,
    state_key,
)
from shared.contracts.topics import PREFERENCES, TRAINING_JOBS, TRAINING_RUNS, VERSIONS
from shared.kafka.log import read_to_end
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.registry.adapters import fetch
from shared.registry.versions import Registry
from tests.support.rollouts import settings_record
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
ML_PYTHON = ROOT / ".venv-ml" / "bin" / "python"
WORDS = [
    "red",
    "blue",
    "green",
    "small",
    "large",
    "quick",
    "slow",
    "parcel",
    "refund",
    "order",
    "ship",
    "door",
]
FINAL = {RunPhase.succeeded, RunPhase.rejected, RunPhase.failed}
JOB_TIMEOUT_S = 300.0
EPOCHS = 12
"""Of DPO: about a hundred steps, so that a kill at its first checkpoint is far from its end."""
FORGIVING = {
    "stop_share": 0.0,
    "stop_drop": 1.0,
    "win_rate": 0.001,
    "win_rate_low": 0.001,
    "judge_accuracy_low": 0.001,
    "min_prompts": 5,
    "min_judge_pairs": 10,
    "perplexity_ratio": 10.0,
    "repetition_rise": 1.0,
    "distance": 0.0,
    "kl": 100.0,
    "capability_fall": 1.0,
    "cases_lost": 1.0,
}
"""A random model of two layers learns next to nothing; the gate's own tests are unit tests."""

pytestmark = pytest.mark.timeout(900)


@dataclass
class Story:
    """What happened, as the log has it."""

    model: str
    folder: Path
    store: Path | None = None
    """Where adapters and datasets are, the folder by default."""
    progress: list[TrainingProgress] = field(default_factory=list)
    records: list[tuple[str, VersionRecord]] = field(default_factory=list)
    rewards: Registry = field(default_factory=Registry)
    scheduled: list[TrainingRequested] = field(default_factory=list)
    steps_before_kill: int = 0
    checkpoint_at_kill: int = 0
    health_while_training: int = 0
    metrics: str = ""
    rebuilt: tuple[int | None, str] = (None, "")

    def of(self, job_id: str) -> list[TrainingProgress]:
        return [event for event in self.progress if event.job_id == job_id]

    def record(self, version: str) -> VersionRecord:
        found = [record for key, record in self.records if key == record_key(version)]
        assert len(found) == 1, f"{version}: {len(found)} records"
        return found[0]

    def attempt(self, job_id: str) -> Path:
        return Workspace(self.folder / "state/training/jobs", job_id).attempt(1)

    def adapter(self, version: str, cache: Path) -> Path:
        record = self.record(version)
        roots = (f"file://{self.folder}/adapters",)
        return fetch(record.adapter_uri, record.adapter_sha256, cache, roots=roots)


class TrainingProcess:
    """One `python -m services.training`."""

    def __init__(self, kafka: str, story: Story, **settings: object) -> None:
        self.port = _free_port()
        store = story.store or story.folder
        environment = {
            "RATCHET_KAFKA_BOOTSTRAP": kafka,
            "RATCHET_DATA_DIR": str(story.folder / "state"),
            "RATCHET_ADAPTERS_URI": f"file://{store}/adapters",
            "RATCHET_DATASETS_URI": f"file://{store}/datasets",
            "RATCHET_CODE_REVISION": "cafe",
            "RATCHET_TRAINING_PYTHON": str(ML_PYTHON),
            "RATCHET_TRAINING_PORT": str(self.port),
            "RATCHET_TRAINING_MODEL": story.model,
            "RATCHET_TRAINING_LEASE_S": "6",
            "RATCHET_TRAINING_THREADS": "1",
            "RATCHET_TRAINING_ATTEMPTS": "1",
            "RATCHET_TRAINING_EVALUATION": '{"prompts": 24, "max_new_tokens": 12, "question_tokens": 4}',
            "RATCHET_TRAINING_REWARD": '{"epochs": 2}',
            **{f"RATCHET_TRAINING_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self._output = (story.folder / f"service-{self.port}.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.training"],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=self._output,
            stderr=self._output,
        )

    def get(self, path: str) -> tuple[int, str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()

    def end(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(timeout=60)
        self._output.close()


@pytest.fixture(scope="module")
def story(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("training")
    told = Story(model=f"m{uuid.uuid4().hex[:8]}", folder=folder)
    base = folder / "base"
    maker = Path(__file__).with_name("training_tiny_model.py")
    subprocess.run([ML_PYTHON, maker, base], check=True, capture_output=True, timeout=120)
    asyncio.run(_tell(kafka, told, base))
    return told


async def _tell(kafka: str, story: Story, base: Path) -> None:
    log = KafkaLog(KafkaConnection(kafka), source="/ratchet/test")
    await log.start()
    lenient = {"gate": json.dumps(FORGIVING), "min_pairs": 50, "dpo": f'{{"epochs": {EPOCHS}}}'}
    forgiving = TrainingProcess(kafka, story, **lenient)
    strict: TrainingProcess | None = None
    try:
        demonstrations = story.folder / "demonstrations.jsonl"
        rng = random.Random(1)
        demonstrations.write_text("".join(_demonstration(rng) + "\n" for _ in range(80)))
        await _ask(
            log, story, "sft", TrainingMethod.sft, base=str(base), dataset_uri=str(demonstrations)
        )
        await _until_ended(log, story, "sft")
        await _set_stable(log, story.model, f"{story.model}-v1.0")

        await _publish_pairs(log, story.model, rng)
        scheduled = await _scheduled(log, story)
        attempt = story.attempt(scheduled)
        await eventually(
            lambda: _checkpoint(attempt) > 1, "DPO has a checkpoint", timeout_s=JOB_TIMEOUT_S
        )
        story.health_while_training = forgiving.get("/healthz")[0]
        forgiving.end(signal.SIGKILL)
        await eventually(lambda: _left(attempt), "the trainer died with its service")
        story.steps_before_kill = len(_dpo_steps(attempt))
        story.checkpoint_at_kill = _checkpoint(attempt)
        assert not (attempt / "dpo.json").exists(), "DPO ended before it could be killed"
        forgiving = TrainingProcess(kafka, story, **lenient)
        await eventually((attempt / "dpo.json").exists, "DPO is done", timeout_s=JOB_TIMEOUT_S)
        forgiving.end(signal.SIGKILL)
        await eventually(lambda: _left(attempt), "the evaluation died with its service")
        forgiving = TrainingProcess(kafka, story, **lenient)
        await _until_ended(log, story, scheduled)
        # The final word is on the log a moment before it is counted.
        story.metrics = await eventually(
            lambda: _counted(forgiving.get("/metrics")[1]), "the run is counted"
        )
        forgiving.end(signal.SIGTERM)

        strict = TrainingProcess(
            kafka, story, min_pairs=0, dpo='{"epochs": 1}', gate='{"min_judge_pairs": 1000}'
        )
        inverted = story.folder / "inverted.jsonl"
        inverted.write_text("".join(_inverted(rng) + "\n" for _ in range(40)))
        shared = {"parent": f"{story.model}-v1.0", "dataset_uri": str(inverted)}
        await _ask(log, story, "refused", TrainingMethod.dpo, **shared)
        await _ask(
            log, story, "let-past", TrainingMethod.dpo, **shared, override_gate=True, reason="drill"
        )
        await _until_ended(log, story, "let-past")
        plain = settings_record(f"{story.model}-plain", model=story.model, base=str(base))
        await log.publish(
            VERSIONS, key=settings_key(plain.version), event=plain, event_id=plain.version
        )
        await _ask(
            log, story, "over-base", TrainingMethod.dpo, parent=plain.version,
            dataset_uri=str(inverted), override_gate=True, reason="drill",
        )  # fmt: skip
        await _ask(log, story, "orphan", TrainingMethod.dpo, parent="nobody")
        v11 = f"{story.model}-v1.1"
        await _ask(log, story, "again", TrainingMethod.dpo, rebuilds=v11)
        for name in ("refused", "let-past", "over-base", "orphan", "again"):
            await _until_ended(log, story, name)
        await _read(log, story)
        await _rebuild(kafka, log, story)
    finally:
        forgiving.end(signal.SIGKILL)
        if strict is not None:
            strict.end(signal.SIGKILL)
        await log.stop()


def test_sft_makes_the_first_version(story: Story, tmp_path: Path) -> None:
    assert [event.phase for event in story.of(_job(story, "sft"))][-1] is RunPhase.succeeded
    record = story.record(f"{story.model}-v1.0")
    assert (record.method, record.parent, record.seed) == ("sft", "", 7)
    assert record.metrics["perplexity_ratio"] < 1
    assert len(record.fingerprint.texts) == 8
    files = {path.name for path in story.adapter(record.version, tmp_path).iterdir()}
    assert files == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "evaluation.json",
        "report.html",
    }


def test_enough_pairs_start_one_job_by_themselves(story: Story) -> None:
    assert len(story.scheduled) == 1
    job = story.scheduled[0]
    assert (job.actor, job.method, job.parent) == (
        "schedule",
        TrainingMethod.dpo,
        f"{story.model}-v1.0",
    )


def test_killed_twice_it_goes_on_and_publishes_once(story: Story) -> None:
    job_id = story.scheduled[0].job_id
    ends = [event for event in story.of(job_id) if event.phase in FINAL]
    assert [event.phase for event in ends] == [RunPhase.succeeded]
    assert [record.job_id for _, record in story.records].count(job_id) == 1
    after = _dpo_steps(story.attempt(job_id))[story.steps_before_kill :]
    assert after[0] == story.checkpoint_at_kill + 1, "it did not go on from the last checkpoint"


def test_dpo_record_is_whole(story: Story) -> None:
    record = story.record(f"{story.model}-v1.1")
    assert (record.method, record.parent) == ("dpo", f"{story.model}-v1.0")
    assert record.base == story.record(f"{story.model}-v1.0").base
    assert len(record.base_sha256) == 64
    assert record.base_sha256 == story.record(f"{story.model}-v1.0").base_sha256
    assert record.dataset.rows >= 40
    assert {place.rpartition("/")[0] for place in record.dataset.offsets} == {PREFERENCES}
    assert record.hyperparameters["epochs"] == EPOCHS
    assert record.hyperparameters["loss"] == ["sigmoid", "sft"]
    assert record.code_revision == "cafe"
    assert {"torch", "trl", "peft", "transformers"} <= set(record.packages)
    assert record.gate.passed
    assert record.metrics["judge_pairs"] >= 10
    assert record.metrics["win_rate_low"] <= record.metrics["win_rate"]
    assert record.metrics["kl"] > 0
    assert record.metrics["capability_items"] == 354
    assert record.metrics["data_age_days"] >= 0


def test_every_parameter_moved_and_the_reference_is_gone(story: Story, tmp_path: Path) -> None:
    child = story.adapter(f"{story.model}-v1.1", tmp_path)
    parent = story.adapter(f"{story.model}-v1.0", tmp_path)
    assert not (child / "ref").exists()
    script = (
        "import sys; from safetensors.torch import load_file\n"
        "a, b = load_file(sys.argv[1]), load_file(sys.argv[2])\n"
        "assert a.keys() == b.keys() and a\n"
        "assert not any('.ref.' in k for k in a)\n"
        "still = [k for k in a if (a[k] - b[k]).abs().max() == 0]\n"
        "assert not still, still\n"
    )
    name = "adapter_model.safetensors"
    subprocess.run([ML_PYTHON, "-c", script, child / name, parent / name], check=True, timeout=60)


def test_a_rebuild_from_the_offsets_is_the_same_bytes(story: Story) -> None:
    record = story.record(f"{story.model}-v1.1")
    stored = DatasetStore(f"file://{story.folder}/datasets").read(record.dataset.dataset_id)
    assert stored is not None
    assert stored.manifest.sha256 == record.dataset.sha256
    assert story.rebuilt == (0, f"{record.dataset.dataset_id}: the same bytes\n")


def test_a_version_that_was_killed_twice_is_made_again_with_the_same_bytes(
    story: Story,
) -> None:
    end = story.of(_job(story, "again"))[-1]
    assert (end.phase, end.message.partition(";")[0]) == (
        RunPhase.succeeded,
        f"{story.model}-v1.1: equal",
    ), end.message
    assert not [record for _, record in story.records if record.job_id == end.job_id]


def test_an_export_is_loaded_by_peft_and_answers_as_registered(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = story.record(f"{story.model}-v1.1")
    monkeypatch.setattr(version_compare, "record_of", lambda _: record.model_dump(mode="json"))
    monkeypatch.setattr(version_export, "erased_rows_of", lambda _: 0)
    version_export.export_version(record.version, tmp_path / "out")
    text = record.fingerprint.texts[0]
    script = (
        "import json, sys, torch; from peft import AutoPeftModelForCausalLM\n"
        "model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)\n"
        "ids = torch.tensor([json.loads(sys.argv[2])])\n"
        "with torch.no_grad(): logits = model.eval()(input_ids=ids).logits[0, :-1]\n"
        "chosen = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]\n"
        "print(json.dumps(chosen.tolist()))\n"
    )
    answered = subprocess.run(
        [ML_PYTHON, "-c", script, tmp_path / "out", json.dumps(text.tokens)],
        check=True,
        stdout=subprocess.PIPE,
        timeout=120,
    )
    assert json.loads(answered.stdout) == pytest.approx(text.logprobs, abs=1e-4)


async def test_the_run_s_judge_is_published_and_the_scorer_scores_as_it_did(
    story: Story, tmp_path: Path
) -> None:
    (reward,) = story.rewards.rewards(story.model)
    assert 0 <= reward.metrics["calibration_error"] <= 1
    assert reward.metrics["accuracy_low"] <= reward.metrics["accuracy"]
    assert len(reward.score_deciles) == 9
    answers = read_rows(story.attempt(story.scheduled[0].job_id) / "answers.jsonl")
    rows = [{"messages": one["messages"], "completion": one["candidate"]} for one in answers]
    roots = (f"file://{story.folder}/adapters",)
    scorer = Scorer(
        python=ML_PYTHON,
        registry=story.rewards,
        cache=AdapterCache(tmp_path, roots=roots, max_bytes=2**30),
        clock=SystemClock(),
        metrics=InferenceMetrics(CollectorRegistry()),
        base_files=BaseFiles(str(story.folder / "base"), tmp_path / "hashes.json"),
    )
    try:
        found = await scorer.score(story.model, rows, timeout_s=120)
        assert found.reward_model == f"{story.model}-reward-v1"
        assert found.values == pytest.approx([one["candidate_score"] for one in answers], abs=1e-4)
        one_by_one = [
            (await scorer.score(story.model, [row], timeout_s=60)).values[0] for row in rows[:4]
        ]
        assert one_by_one == pytest.approx(found.values[:4], abs=1e-4)
        with pytest.raises(NoRewardModel, match="nobody"):
            await scorer.score("nobody", rows, timeout_s=1)
    finally:
        await scorer.close()


def test_what_cannot_pass_is_rejected_with_a_diagnosis(story: Story) -> None:
    end = story.of(_job(story, "refused"))[-1]
    assert end.phase is RunPhase.rejected
    assert end.message.startswith("not trained")
    assert "judge_data " in end.message
    assert not [record for _, record in story.records if record.job_id == end.job_id]


def test_an_override_is_kept_in_the_record(story: Story) -> None:
    end = story.of(_job(story, "let-past"))[-1]
    assert (end.phase, end.version) == (RunPhase.succeeded, f"{story.model}-v1.2")
    gate = story.record(end.version).gate
    assert not gate.passed
    assert (gate.overridden_by, gate.override_reason) == ("tester", "drill")
    assert gate.released


def test_a_version_without_an_adapter_is_gone_on_from_by_a_new_one(
    story: Story, tmp_path: Path
) -> None:
    (last,) = [event for event in story.of(_job(story, "over-base")) if event.phase in FINAL]
    assert last.phase is RunPhase.succeeded, last.message
    record = story.record(last.version)
    assert (record.parent, record.base) == ("", str(story.folder / "base"))
    checks = {check.name: check for check in record.gate.checks}
    assert checks["kl_first"].value == checks["kl"].value, "the base is parent and first"
    assert checks["distinct"].value is not None
    script = (
        "import sys; from safetensors.torch import load_file\n"
        "weights = load_file(sys.argv[1])\n"
        "assert weights and all(bool(one.any()) for one in weights.values()), 'B is still 0'"
    )
    weights = story.adapter(record.version, tmp_path) / "adapter_model.safetensors"
    subprocess.run([ML_PYTHON, "-c", script, weights], check=True, timeout=120)


def test_an_unknown_parent_fails_with_the_reason(story: Story) -> None:
    end = story.of(_job(story, "orphan"))[-1]
    assert end.phase is RunPhase.failed
    assert "parent: nobody is no version" in end.message


def test_it_is_alive_while_a_trainer_works(story: Story) -> None:
    assert story.health_while_training == 200
    assert 'ratchet_training_runs_total{method="dpo",outcome="succeeded"} 1.0' in story.metrics
    assert 'ratchet_training_run_progress_ratio{method="dpo"} 0.0' in story.metrics


def _counted(metrics: str) -> str:
    """The metrics once a DPO run has ended in them, else an empty text."""
    return metrics if 'runs_total{method="dpo",outcome="succeeded"} 1.0' in metrics else ""


def _checkpoint(attempt: Path) -> int:
    """The step of the newest whole checkpoint, 0 without one."""
    whole = attempt.glob("checkpoints/checkpoint-*/trainer_state.json")
    return max((int(path.parent.name.removeprefix("checkpoint-")) for path in whole), default=0)


def _left(attempt: Path) -> bool:
    """Whether no trainer holds the folder."""
    with (attempt / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _dpo_steps(attempt: Path) -> list[int]:
    lines = [json.loads(line) for line in (attempt / "progress.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["stage"] == "dpo" and not line.get("preparing")]
    return [line["done"] for line in steps]


def _job(story: Story, name: str) -> str:
    return f"{story.model}-{name}"


async def _ask(
    log: KafkaLog, story: Story, name: str, method: TrainingMethod, **fields: Any
) -> None:
    job = TrainingRequested(
        job_id=_job(story, name),
        model=story.model,
        method=method,
        seed=7,
        actor="tester",
        requested_at=datetime.now(UTC),
        **fields,
    )
    await log.publish(TRAINING_JOBS, key=job.job_id, event=job, event_id=job.job_id)


async def _read(log: KafkaLog, story: Story) -> None:
    runs = await read_to_end(log, TRAINING_RUNS, timeout_s=60)
    events = [TrainingProgress.model_validate_json(record.value or b"") for record in runs]
    story.progress = [event for event in events if event.model == story.model]
    versions = await read_to_end(log, VERSIONS, timeout_s=60)
    for record in versions:
        story.rewards.apply(record.key, record.value)
    story.records = [
        (record.key, VersionRecord.model_validate_json(record.value or b""))
        for record in versions
        if record.key.startswith(f"{story.model}-") and record.key.endswith("/record")
    ]


async def _until(
    log: KafkaLog, story: Story, wanted: Callable[[TrainingProgress], bool]
) -> TrainingProgress:
    tail = log.tail(TRAINING_RUNS)
    try:
        async with asyncio.timeout(JOB_TIMEOUT_S):
            async for record in tail:
                event = TrainingProgress.model_validate_json(record.value or b"")
                if event.model == story.model and wanted(event):
                    return event
    finally:
        await tail.close()
    raise AssertionError("the tail ended")


async def _until_ended(log: KafkaLog, story: Story, name: str) -> None:
    wanted = {name, _job(story, name)}
    await _until(log, story, lambda event: event.job_id in wanted and event.phase in FINAL)


async def _scheduled(log: KafkaLog, story: Story) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        records = await read_to_end(log, TRAINING_JOBS, timeout_s=60)
        jobs = [TrainingRequested.model_validate_json(record.value or b"") for record in records]
        story.scheduled = [
            job for job in jobs if job.model == story.model and job.actor == "schedule"
        ]
        if story.scheduled:
            return story.scheduled[0].job_id
    raise AssertionError("the schedule asked for nothing")


async def _set_stable(log: KafkaLog, model: str, version: str) -> None:
    state = VersionState(
        version=version, model=model, state=Lifecycle.stable, token=0, at=datetime.now(UTC)
    )
    await log.publish(VERSIONS, key=state_key(version), event=state, event_id=str(uuid.uuid4()))


async def _publish_pairs(log: KafkaLog, model: str, rng: random.Random) -> None:
    now = datetime.now(UTC)
    for number in range(110):
        pair = PreferencePair(
            pair_id=str(uuid.UUID(int=rng.getrandbits(128))),
            tenant="default",
            model=model,
            messages=(Message(role="user", content=_words(rng)),),
            chosen=f"thank you {_words(rng)}",
            rejected=f"no {_words(rng)}",
            source=PairSource.vote,
            panel="judge" if number < 30 else "",
            causes=(f"f{number}:0",),
            raters=(f"judge-{number}" if number < 30 else f"user-{number}",),
            created_at=now,
        )
        await log.publish(PREFERENCES, key=pair.pair_id, event=pair, event_id=pair.pair_id)
        example = UnpairedExample(
            pair_id=str(uuid.UUID(int=rng.getrandbits(128))),
            tenant="default",
            model=model,
            messages=(Message(role="user", content=_words(rng)),),
            completion="no",
            label=False,
            causes=(f"u{number}:0",),
            created_at=now,
        )
        await log.publish(PREFERENCES, key=example.pair_id, event=example, event_id=example.pair_id)


async def _rebuild(kafka: str, log: KafkaLog, story: Story) -> None:
    await _publish_pairs(log, story.model, random.Random(99))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.training.rebuild",
        story.record(f"{story.model}-v1.1").dataset.dataset_id,
        cwd=ROOT,
        env={
            **os.environ,
            "RATCHET_KAFKA_BOOTSTRAP": kafka,
            "RATCHET_DATASETS_URI": f"file://{story.folder}/datasets",
        },
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        said, _ = await process.communicate()
    story.rebuilt = (process.returncode, said.decode())


def _words(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(4))


def _demonstration(rng: random.Random) -> str:
    turns = [
        {"role": "user", "content": _words(rng)},
        {"role": "assistant", "content": f"thank you {_words(rng)}"},
    ]
    return json.dumps({"messages": turns})


def _inverted(rng: random.Random) -> str:
    return json.dumps(
        {
            "messages": [{"role": "user", "content": _words(rng)}],
            "chosen": f"no {_words(rng)}",
            "rejected": f"thank you {_words(rng)}",
        }
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
