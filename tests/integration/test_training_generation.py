"""vLLM writes a training's answers: those of transformers, of the adapter that is trained."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shared.contracts.events.training import (
    RunPhase,
    TrainingMethod,
    TrainingProgress,
    TrainingRequested,
)
from shared.contracts.events.versions import VersionRecord, record_key, settings_key
from shared.contracts.recipes import ONLINE
from shared.contracts.topics import TRAINING_JOBS, TRAINING_RUNS, VERSIONS
from shared.kafka.log import read_to_end
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from tests.integration.test_training import FINAL, FORGIVING, Story, TrainingProcess
from tests.support.rollouts import settings_record
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(900)


def printed(part: str, folder: Path) -> dict[str, Any]:
    """What `training_generation.py` prints of a part; the models that it makes stay in the folder."""
    script = Path(__file__).with_name("training_generation.py")
    done = subprocess.run(
        [ROOT / ".venv-ml/bin/python", script, folder, part],
        check=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        timeout=840,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return printed("written", tmp_path_factory.mktemp("written"))


@pytest.mark.parametrize("arm", ["base", "one", "two"])
def test_the_likeliest_answers_are_those_of_transformers(written: dict[str, Any], arm: str) -> None:
    theirs, ours = written["theirs"][arm], written["ours"][arm]
    assert len(theirs) == 24, "an answer to each prompt"
    assert all(theirs)
    assert theirs == ours


def test_each_adapter_answers_differently_from_the_base_and_the_other(
    written: dict[str, Any],
) -> None:
    base, one, two = (written["theirs"][arm] for arm in ("base", "one", "two"))
    assert all(a != b and b != c and a != c for a, b, c in zip(base, one, two, strict=True))


def test_chance_follows_the_seed_and_probabilities_are_those_of_the_policy(
    written: dict[str, Any],
) -> None:
    first, again, other = written["drawn"]
    assert first == again
    assert sum(a != b for a, b in zip(first, other, strict=True)) > 20
    assert written["apart"] < 1e-3, "nats of a token"


def test_an_adapter_that_vllm_refuses_is_told_with_the_remedy(written: dict[str, Any]) -> None:
    assert "LoRA rank 16 is greater than max_lora_rank 8" in written["refused"]
    assert "set generation to transformers" in written["refused"]
    assert written["packages"] == {"vllm": written["packages"]["vllm"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return printed("trained", tmp_path_factory.mktemp("trained"))


@pytest.mark.verify
@pytest.mark.parametrize("method", ONLINE)
def test_a_method_trains_on_answers_that_vllm_wrote(trained: dict[str, Any], method: str) -> None:
    found = trained[method]
    assert found["moved"] > 0
    assert found["figures"]["loss"] == found["figures"]["loss"]
    assert found["figures"]["kl"] >= 0
    assert "engine.json" in found["files"]
    if method == "grpo":
        assert len(found["apart"]) >= 10, "the engine had the adapter of each step"
        assert max(found["apart"]) < 1e-3


@pytest.mark.verify
def test_an_evaluation_asks_both_arms_and_measures_the_same(tmp_path: Path) -> None:
    found = printed("evaluated", tmp_path)
    theirs, ours = found["vllm"], found["transformers"]
    assert theirs == ours, "the same answers at temperature 0, so the same figures"
    assert len(theirs["answers"]) == 8
    assert all(row["candidate"] != row["parent"] for row in theirs["answers"])
    assert len(theirs["questions"]) > 50


@pytest.mark.verify
async def test_a_job_whose_answers_vllm_writes_ends_with_a_version(
    kafka: str, tmp_path: Path
) -> None:
    """Online DPO, its reward monitor, both arms of the evaluation and its questions."""
    printed("models", tmp_path)
    model = f"m{uuid.uuid4().hex[:8]}"
    story = Story(model=model, folder=tmp_path)
    rows = [
        {
            "messages": [{"role": "user", "content": f"{word} {number}"}],
            "chosen": f"thank you {word} {number % 7}",
            "rejected": f"no {number % 7} {word}",
        }
        for number, word in enumerate(["parcel", "refund", "order", "door"] * 40)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = settings_record(f"{model}-plain", model=model, base=str(tmp_path / "base"))
    job = TrainingRequested(
        job_id=f"{model}-online",
        model=model,
        method=TrainingMethod.dpo,
        algorithm="online_dpo",
        parent=plain.version,
        dataset_uri=str(tmp_path / "pairs.jsonl"),
        hyperparameters={"generation": "vllm", "max_new_tokens": 8, "generations": 2},
        override_gate=True,
        reason="its base is random",
        actor="tester",
        requested_at=datetime.now(UTC),
    )
    async with contextlib.AsyncExitStack() as stack:
        log = KafkaLog(KafkaConnection(kafka), source="/ratchet/test")
        await log.start()
        stack.push_async_callback(log.stop)
        await log.publish(
            VERSIONS, key=settings_key(plain.version), event=plain, event_id=plain.version
        )
        await log.publish(TRAINING_JOBS, key=job.job_id, event=job, event_id=job.job_id)
        process = TrainingProcess(
            kafka,
            story,
            min_pairs=0,
            gate=json.dumps(FORGIVING),
            generation='{"engine": "vllm", "start_s": 300}',
        )
        stack.callback(process.end, signal.SIGKILL)

        async def final() -> TrainingProgress | None:
            runs = await read_to_end(log, TRAINING_RUNS, timeout_s=60)
            said = [TrainingProgress.model_validate_json(one.value or b"") for one in runs]
            return next(
                (one for one in said if one.job_id == job.job_id and one.phase in FINAL), None
            )

        end = await eventually(final, "the job has ended", timeout_s=800)
        assert end is not None
        assert end.phase is RunPhase.succeeded, end.message
        found = await read_to_end(log, VERSIONS, timeout_s=60)
    (value,) = [one.value for one in found if one.key == record_key(end.version)]
    record = VersionRecord.model_validate_json(value or b"")
    assert record.hyperparameters["generation"] == "vllm"
    assert "vllm" in record.packages
    assert record.metrics["train_monitor_checks"] > 0
    assert record.metrics["prompts"] > 0
    attempt = story.attempt(job.job_id)
    assert (attempt / "engine-0.log").exists()
    answered = [json.loads(line) for line in (attempt / "answers.jsonl").read_text().splitlines()]
    assert all(row["candidate"] or row["parent"] for row in answered)
    assert any(row["candidate"] != row["parent"] for row in answered), "the adapter answered"
    await asyncio.to_thread(process.end, signal.SIGTERM)
