"""The shipped defaults on real parts: the circle twice, and another product's file by one command.

Feedback service, aggregator and training service as `make up` starts them, without a setting but one
thread; only the base is small, a model of a hundred words.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import statistics
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.training_stages import ML_PYTHON, read, train, write
from deploy.local.stack import Stack
from services.training.evaluation import EvaluationSettings
from services.training.gate import GateLimits
from services.training.workspace import Workspace
from shared.contracts.events.training import RunPhase, TrainingMethod, TrainingProgress
from shared.contracts.events.versions import Lifecycle, VersionRecord, VersionState, state_key
from shared.contracts.topics import PREFERENCES, TRAINING_RUNS, VERSIONS
from shared.kafka.log import EventLog, read_to_end
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.registry.adapters import fetch
from tests.support.command import ROOT, ratchet
from tests.support.small_talk import PROMPTS, answer, politeness
from tests.support.waiting import eventually

MODEL = "assistant"
DEMONSTRATIONS, ASKED, RATERS = 500, 330, 100
"""People are asked about so many pairs a round."""
IMPORTED = 400
FIRST_POLITE, OLD_POLITE = 0.3, 0.5
"""Shares of places that are polite: of the demonstrations, and of the answers that people first compare."""
DOUBT = 0.15
"""Standard deviation of what a rater's mood adds to the politeness of an answer."""
CARED = 0.25
"""Half of one place: who feels less of a difference between two answers prefers none."""
PATIENCE_S = 60.0
TRAINING_S = 400.0
FINAL = {RunPhase.succeeded, RunPhase.rejected, RunPhase.failed}

pytestmark = pytest.mark.timeout(1200)


class Circle:
    """A stack with a log to read and to write."""

    def __init__(self, stack: Stack, log: EventLog, base: Path, folder: Path) -> None:
        self.stack, self.log, self.base, self.folder = stack, log, base, folder

    def train_first(self, seed: int = 1) -> None:
        """v1.0 as the README makes it: by SFT on demonstrations."""
        chance = random.Random(seed)
        demonstrations = self.folder / "demonstrations.jsonl"
        asked = chance.choices(PROMPTS, k=DEMONSTRATIONS)
        write(
            demonstrations,
            (
                {"messages": [*turn(prompt), {"role": "assistant", "content": said}]}
                for prompt in asked
                for said in [answer(prompt, FIRST_POLITE, chance)]
            ),
        )
        made = ratchet(
            *("train", "--method", "sft", "--base", str(self.base)),
            *("--dataset", demonstrations.as_uri(), "--wait", "--timeout", str(TRAINING_S)),
            env=self.stack.environment(),
            timeout_s=TRAINING_S + 30,
        )
        assert made.status == 0, made.out + made.err

    async def record(self, version: str) -> VersionRecord:
        records = await read_to_end(self.log, VERSIONS, timeout_s=PATIENCE_S)
        (value,) = [one.value for one in records if one.key == f"{version}/record"]
        return VersionRecord.model_validate_json(value or b"")

    async def set_state(self, version: str, state: Lifecycle) -> None:
        """The rollout's part: what gets the users' traffic."""
        event = VersionState(
            version=version, model=MODEL, state=state, token=0, at=datetime.now(UTC)
        )
        await self.log.publish(
            VERSIONS, key=state_key(version), event=event, event_id=str(uuid.uuid4())
        )

    async def sample(self, version: str, prompts: Sequence[str]) -> list[str]:
        """What a version answers, one answer a prompt."""
        record = await self.record(version)
        folder = self.folder / f"sample-{version}"
        (folder / "data").mkdir(parents=True)
        write(folder / "data/prompts.jsonl", ({"messages": turn(prompt)} for prompt in prompts))
        roots = (record.adapter_uri.rpartition("/")[0],)
        adapter = fetch(record.adapter_uri, record.adapter_sha256, folder / "cache", roots=roots)
        (folder / "adapter").symlink_to(adapter)
        settings = {"prompts": len(prompts), "max_new_tokens": 48}
        job = {"base": str(self.base), "data": str(folder / "data"), "evaluation": settings}
        train(folder, "dpo", ["evaluate"], {**job, "seed": 1, "threads": 1})
        return [row["candidate"] for row in read(folder / "answers.jsonl")]

    async def vote(
        self, version: str, twice: Sequence[str], answers: Sequence[str], chance: random.Random
    ) -> None:
        """People prefer the politer of two different answers; `twice` has each prompt two times."""
        pairs = zip(twice, answers[:ASKED], answers[ASKED:], strict=False)
        said = [
            preferred(f"{version or 'log'}-{number}", version, prompt, pair, chance)
            for number, (prompt, *pair) in enumerate(pairs)
            if pair[0] != pair[1]
        ]
        items = [one for one in said if one is not None]
        wanted = await self.pairs() + len(items)
        async with httpx.AsyncClient(base_url=self.stack.url("feedback"), timeout=60) as http:
            taken = await http.post("/v1/feedback/batch", json={"items": items})
        assert taken.status_code == 202, taken.text

        async def paired() -> bool:
            return await self.pairs() == wanted

        await eventually(paired, f"{len(items)} pairs", PATIENCE_S)

    async def pairs(self) -> int:
        records = await read_to_end(self.log, PREFERENCES, timeout_s=PATIENCE_S)
        return sum(b'"rejected"' in (record.value or b"") for record in records)

    async def final_words(self) -> list[TrainingProgress]:
        """How each job ended."""
        records = await read_to_end(self.log, TRAINING_RUNS, timeout_s=PATIENCE_S)
        words = [TrainingProgress.model_validate_json(one.value or b"") for one in records]
        return [one for one in words if one.phase in FINAL]

    async def released(self, version: str) -> TrainingProgress:
        """The final word of the scheduled training that made a version."""

        async def ended() -> TrainingProgress | None:
            words = await self.final_words()
            assert [one.message for one in words if one.phase is not RunPhase.succeeded] == []
            return next((one for one in words if one.version == version), None)

        found = await eventually(ended, f"{version} is released", TRAINING_S)
        assert found is not None
        return found

    def politeness(self, job_id: str) -> tuple[float, float]:
        """Means of the parent's and the candidate's answers in the evaluation."""
        jobs = Workspace(self.stack.run_dir / "data/training/training/jobs", job_id)
        *_, attempt = jobs.attempts()
        rows = read(attempt / "answers.jsonl")
        before, after = (
            statistics.fmean(politeness(row[arm]) for row in rows)
            for arm in ("parent", "candidate")
        )
        return before, after


def turn(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def preferred(
    trace_id: str, version: str, prompt: str, pair: Sequence[str], chance: random.Random
) -> dict[str, Any] | None:
    """One person's preference, as a product sends it that asked elsewhere than the router.

    None of who finds both alike.
    """
    moods = [politeness(text) + chance.gauss(0, DOUBT) for text in pair]
    if abs(moods[0] - moods[1]) < CARED:
        return None
    written_by = {"chosen_version": version, "rejected_version": version} if version else {}
    chosen, rejected = pair if moods[0] > moods[1] else reversed(pair)
    return {
        "trace_id": trace_id,
        "source": "survey",
        "model": MODEL,
        "prompt": prompt,
        "completion": chosen,
        "type": "preference",
        "value": {"chosen": chosen, "rejected": rejected} | written_by,
        "user_id": f"person-{chance.randrange(RATERS)}",
    }


@pytest.fixture(scope="module")
def base(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """The base's folder, and the process that makes it while the stack starts."""
    folder = tmp_path_factory.mktemp("small-talk") / "base"
    maker = Path(__file__).with_name("training_small_talk.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    making = subprocess.Popen([ML_PYTHON, maker, folder], env=environment)
    yield folder, making
    making.kill()
    making.wait()


@pytest.fixture
def stack(base: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    run_dir, threads = tmp_path_factory.mktemp("circle"), {"RATCHET_TRAINING_THREADS": "1"}
    wanted = ["feedback", "aggregator", "training"]
    with Stack(run_dir, services=wanted, env=threads, ports="free", say=lambda _: None) as started:
        yield started


@pytest.fixture
async def circle(
    stack: Stack, base: tuple[Path, subprocess.Popen[bytes]], tmp_path: Path
) -> AsyncIterator[Circle]:
    folder, making = base
    assert making.wait(timeout=PATIENCE_S) == 0
    log = KafkaLog(KafkaConnection(stack.address("kafka")), source="/ratchet/test")
    await log.start()
    yield Circle(stack, log, folder, tmp_path)
    await log.stop()


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.verify) for seed in (2, 3))]
)
async def test_feedback_makes_two_generations_that_pass_the_default_gate(
    circle: Circle, seed: int, record_property: Callable[[str, object], None]
) -> None:
    circle.train_first(seed)
    asked = random.Random(seed).sample(PROMPTS, 2 * ASKED)
    for generation in (1, 2):
        parent, child = f"{MODEL}-v1.{generation - 1}", f"{MODEL}-v1.{generation}"
        chance = random.Random(f"{seed}/{generation}")
        twice = asked[generation - 1 :: 2] * 2
        if generation == 1:  # answers of old, by people who were politer than the demonstrations
            said, version = [answer(one, OLD_POLITE, chance) for one in twice], ""
        else:
            said, version = await circle.sample(parent, twice), parent
        await circle.vote(version, twice, said, chance)
        await circle.set_state(parent, Lifecycle.stable)
        run = await circle.released(child)
        await circle.set_state(parent, Lifecycle.retired)

        record = await circle.record(child)
        assert (record.method, record.parent) == ("dpo", parent)
        assert (record.gate.passed, record.gate.overridden_by) == (True, "")
        assert GateLimits.model_validate(record.judged_with["gate"]) == GateLimits()
        shipped = EvaluationSettings.model_validate(record.judged_with["evaluation"])
        assert shipped == EvaluationSettings()
        fewer = record.metrics["perplexity_rows"] < record.metrics["heldout"]
        assert fewer == (generation == 2), "perplexity is of the parent's own generation"
        assert (record.metrics.get("data_on_policy_share", 0.0) > 0) == (generation == 2)
        before, after = circle.politeness(run.job_id)
        for check in record.gate.checks:
            record_property(f"{child} {check.name}", f"{check.value:.3g} of {check.limit:.3g}")
        record_property(f"{child} politeness", f"{before:+.2f} to {after:+.2f}")
        assert after > before, "what people like has risen"


@pytest.mark.verify
async def test_another_product_s_file_is_imported_trained_and_judged_by_one_command(
    circle: Circle, record_property: Callable[[str, object], None]
) -> None:
    """As a new user tries it: a base that never saw the domain, and no setting."""
    circle.train_first()
    await circle.set_state(f"{MODEL}-v1.0", Lifecycle.stable)
    file, rows, page = (circle.folder / name for name in ("hh.jsonl.gz", "rows.jsonl", "r.html"))
    with gzip.open(file, "wt", encoding="utf-8") as compressed:
        compressed.writelines(json.dumps(gardening(number)) + "\n" for number in range(IMPORTED))
    command = ratchet(
        *("train", "--from", str(file), "--dataset", str(rows), "--report", str(page)),
        env=circle.stack.environment(),
        timeout_s=TRAINING_S,
    )
    (run,) = [one for one in await circle.final_words() if one.method is TrainingMethod.dpo]
    for check in run.checks:
        record_property(check.name, f"{check.value} of {check.limit:.3g}")
    assert run.phase is not RunPhase.failed, run.message
    assert command.status == (0 if run.phase is RunPhase.succeeded else 1), command.err
    assert run.metrics["judge_pairs"] >= GateLimits().min_judge_pairs, "judged by its own rows"
    assert run.metrics["judge_accuracy_low"] > 0.5
    assert run.metrics["perplexity_ratio"] < 1, "the held-out rows of the domain are likelier"
    text = page.read_text()
    assert ("What happened, and what to do" in text) == (run.phase is RunPhase.rejected)
    assert "Gate: " in text


def gardening(number: int) -> dict[str, str]:
    """A row of another domain in Anthropic's form."""
    tree = ("apple", "pear", "plum", "cherry", "quince")[number % 5]
    asked = f"\n\nHuman: How do I prune {tree} tree {number}?\n\nAssistant:"
    return {
        "chosen": f"{asked} Cut branch {number} of the {tree} in late winter, above a bud.",
        "rejected": f"{asked} I cannot say that, sorry {number}.",
    }
