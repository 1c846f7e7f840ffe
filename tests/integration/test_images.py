"""The images, built from the Dockerfile and started as the chart starts them: confined, as nobody.

The base is Debian 12 by debootstrap, as no registry of images is asked; buildah and podman need root.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from deploy.local.processes import ROOT
from services.aggregator.__main__ import EXIT_FAILED
from shared.contracts.events.training import (
    RunPhase,
    TrainingMethod,
    TrainingProgress,
    TrainingRequested,
)
from shared.contracts.topics import TRAINING_JOBS, TRAINING_RUNS
from shared.kafka.log import read_events
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.registry.training_jobs import FINAL
from tests.support.waiting import eventually, wait_until

BUILD_TIMEOUT_S = 3_000.0
ENGINE_S = 300.0
JOB_S = 300.0
MAX_LIGHT_MB = 250
MAX_ML_MB = 7_500
"""Of the lock's torch from the package index, whose libraries of CUDA are two thirds."""
NOBODY = "10001"
TOOLS = ("pip", "pip3", "gcc", "cc", "ld", "strip", "git")
LIGHT = ("router", "feedback", "rollout")
ML_PYTHON = ROOT / ".venv-ml" / "bin" / "python"
BRIDGE = ROOT / "tests" / "support" / "bridge.py"
SETTINGS = {
    "RATCHET_PROFILE": "local",
    "RATCHET_LOCAL_OPEN": "true",
    "RATCHET_TENANTS": "default",
    # Nobody is there: a service lives without its neighbours, and says what it waits for.
    "RATCHET_KAFKA_BOOTSTRAP": "127.0.0.1:9",
    "RATCHET_REDIS_URL": "redis://127.0.0.1:9/0",
    "RATCHET_ROUTER_ENGINES": "http://127.0.0.1:9",
    "RATCHET_ROLLOUT_AGENTS": "http://127.0.0.1:9",
}
CONFINED = (
    *("--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges"),
    *("--network", "none", "--tmpfs", "/tmp:rw"),
    *("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=1024:1024"),
)

pytestmark = [
    pytest.mark.timeout(4_000),
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, ("buildah", "podman", "debootstrap"))),
        reason="images are built by root, with what `deploy/local/setup.sh images` installs",
    ),
]


def run(*command: str, timeout_s: float = 60.0, check: bool = True) -> str:
    """What the command said, warnings included; `AssertionError` with it where it failed."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0 or not check, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout


@cache
def image(target: str) -> dict[str, Any]:
    """Builds a target of the Dockerfile, once; what podman says of the image."""
    run("deploy/docker/build.sh", target, timeout_s=BUILD_TIMEOUT_S)
    (found,) = json.loads(run("podman", "image", "inspect", f"localhost/ratchet/{target}"))
    return found


@pytest.fixture
def container(unique: str) -> Iterator[str]:
    name = f"ratchet-{unique}"
    yield name
    run("podman", "rm", "--force", "--volumes", "--time", "5", "--ignore", name)


def start(
    name: str,
    target: str,
    given: Mapping[str, str] | None = None,
    *volumes: str,
    command: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """Starts an image confined, by its own command or another; returns how a command in it begins."""
    settings = [f"--env={name}={text}" for name, text in {**SETTINGS, **(given or {})}.items()]
    mounted = [f"--volume={volume}" for volume in volumes]
    found = f"localhost/ratchet/{target}"
    podman = ("podman", "--runtime", "runc")
    options = (*CONFINED, *settings, *mounted)
    run(*podman, "run", "--detach", "--name", name, *options, found, *command)
    return (*podman, "exec", name)


def healthy(name: str) -> bool:
    """By the image's own health check."""
    return not subprocess.run(
        ("podman", "--runtime", "runc", "healthcheck", "run", name),
        capture_output=True,
        timeout=60,
        check=False,
    ).returncode


@pytest.mark.parametrize(
    "target",
    [LIGHT[0], *(pytest.param(one, marks=pytest.mark.verify) for one in (*LIGHT[1:], "training"))],
)
def test_an_image_lives_as_nobody_on_a_root_that_nobody_writes(target: str, container: str) -> None:
    built = image(target)
    assert built["Config"]["User"] == NOBODY
    assert built["Size"] / 1e6 <= (MAX_LIGHT_MB if target in LIGHT else MAX_ML_MB)

    inside = start(container, target)
    try:
        wait_until(lambda: healthy(container), f"{target} in its image is healthy")
    except AssertionError:
        print(run("podman", "logs", container, check=False))
        raise
    holds_what_runs_alone(inside)


def holds_what_runs_alone(inside: tuple[str, ...]) -> None:
    """Nobody's process, a root that nobody writes, nothing to build with, nothing of the builder."""
    assert run(*inside, "id", "-u").strip() == NOBODY
    written = run(*inside, "sh", "-c", "touch /app/x /opt/ratchet/x 2>&1; true")
    assert written.count("Read-only file system") == 2
    look = f"command -v {' '.join(TOOLS)}; ls /opt/*/bin/pip* 2>/dev/null; true"
    assert not run(*inside, "sh", "-c", look), "tools to build with"
    caches = run(*inside, "sh", "-c", "find /app -name __pycache__ -o -name .env -o -name '.git*'")
    assert not caches, "copied from the machine that built it"


@pytest.mark.verify
def test_the_aggregators_image_ends_with_what_it_lacks(container: str) -> None:
    """A worker without brokers ends, and whoever runs it starts it again."""
    assert image("aggregator")["Size"] / 1e6 <= MAX_LIGHT_MB
    start(container, "aggregator")
    ended = run("podman", "wait", container, timeout_s=120)
    said = run("podman", "logs", container)
    assert int(ended) == EXIT_FAILED, said
    assert "KafkaConnectionError" in said
    assert "start it again" in said


@pytest.mark.verify
def test_the_aggregator_lives_in_its_image_where_there_is_kafka(
    container: str, kafka: str, bridge: Path
) -> None:
    image("aggregator")
    # It looks for Kafka at once, so the way there is open before it begins.
    way = f"python /bridge/bridge.py tcp:{kafka.rpartition(':')[2]} unix:/bridge/kafka"
    command = ("sh", "-c", f"{way} & exec python -m services.aggregator")
    settings = {"RATCHET_KAFKA_BOOTSTRAP": kafka}
    inside = start(container, "aggregator", settings, f"{bridge}:/bridge", command=command)
    try:
        wait_until(lambda: healthy(container), "the aggregator is healthy")
        wait_until(lambda: "ok" in state(inside, 8085), "the aggregator owns its partitions")
    except AssertionError:
        print(run("podman", "logs", container, check=False))
        raise
    holds_what_runs_alone(inside)


@pytest.mark.verify
def test_the_intake_lives_in_feedbacks_image(container: str) -> None:
    image("feedback")
    command = ("python", "-m", "services.feedback.intake")
    inside = start(container, "feedback", command=command)
    wait_until(lambda: "ok" in state(inside, 8087, "/healthz"), "the intake is alive")
    holds_what_runs_alone(inside)


def state(inside: tuple[str, ...], port: int, path: str = "/readyz") -> str:
    """What a service in its container says of itself; empty while it says nothing or is not well."""
    url = f"http://127.0.0.1:{port}{path}"
    return run(*inside, "sh", "-c", f"python - {url} 2>/dev/null <<'.' || true\n{ASK}\n.")


@pytest.mark.verify
def test_the_command_has_its_image() -> None:
    image("cli")
    podman = ("podman", "--runtime", "runc", "run", "--rm", *CONFINED)
    assert "Usage: ratchet [OPTIONS]" in run(*podman, "localhost/ratchet/cli", "--help")


def made_by(maker: str, folder: Path) -> Path:
    """A folder with a tiny random model, which everybody may read."""
    folder.mkdir()
    run(str(ML_PYTHON), f"tests/integration/{maker}", str(folder), timeout_s=300)
    run("chmod", "-R", "a+rX", str(folder))
    return folder


@pytest.fixture
def bridge(kafka: str, tmp_path: Path) -> Iterator[Path]:
    """A folder with a socket that leads to Kafka, and the program that leads from it."""
    folder = tmp_path / "bridge"
    folder.mkdir()
    shutil.copy(BRIDGE, folder)
    run("chmod", "-R", "a+rX", str(folder))
    port = kafka.rpartition(":")[2]
    with subprocess.Popen(
        (sys.executable, str(BRIDGE), f"unix:{folder / 'kafka'}", f"tcp:{port}")
    ) as handing_on:
        wait_until((folder / "kafka").exists, "the bridge is open")
        yield folder
        handing_on.terminate()


def cross(inside: tuple[str, ...], kafka: str) -> None:
    """Kafka at its own address in a container that has no network."""
    detached = (*inside[:-1], "--detach", inside[-1])
    port = kafka.rpartition(":")[2]
    run(*detached, "python", "/bridge/bridge.py", f"tcp:{port}", "unix:/bridge/kafka")


ASK = """
import json, sys, urllib.request
url, body = sys.argv[1], sys.argv[2:]
request = urllib.request.Request(
    url, data=body[0].encode() if body else None, headers={"content-type": "application/json"}
)
print(urllib.request.urlopen(request, timeout=120).read().decode())
"""


def ask(inside: tuple[str, ...], path: str, body: Mapping[str, Any] | None = None) -> str:
    """What the engine answers in its container."""
    sent = [json.dumps(body)] if body else []
    return run(*inside, "python", "-c", ASK, f"http://127.0.0.1:8000{path}", *sent, timeout_s=150)


@pytest.mark.verify
def test_the_engine_answers_in_its_image(
    container: str, kafka: str, bridge: Path, unique: str, tmp_path: Path
) -> None:
    built = image("inference")
    assert built["Config"]["User"] == NOBODY
    assert built["Size"] / 1e6 <= MAX_ML_MB
    # vLLM on CPU has no attention for heads as small as the other tiny model's.
    base = made_by("tiny_models.py", tmp_path / "tiny") / "base"
    settings = {
        "RATCHET_KAFKA_BOOTSTRAP": kafka,
        "RATCHET_INFERENCE_BASE_MODEL": "/model",
        "RATCHET_INFERENCE_MODELS": unique,
        "RATCHET_INFERENCE_ENGINE_THREADS": "1",
    }
    inside = start(container, "inference", settings, f"{base}:/model:ro", f"{bridge}:/bridge")
    try:
        cross(inside, kafka)
        wait_until(lambda: healthy(container), "the engine serves, and its agent", ENGINE_S)
        assert ask(inside, "/health").strip() == ""
        question = {"role": "user", "content": "Where is my parcel?"}
        said = json.loads(
            ask(
                inside,
                "/v1/chat/completions",
                {"model": "/model", "messages": [question], "max_tokens": 8},
            )
        )
        assert said["usage"]["completion_tokens"] >= 1
        # What adapters are verified by.
        read = {"model": "/model", "prompt": [[5, 6, 7]], "max_tokens": 1, "prompt_logprobs": 0}
        (choice,) = json.loads(ask(inside, "/v1/completions", read))["choices"]
        assert len(choice["prompt_logprobs"]) == 3
    except AssertionError:
        print(run("podman", "logs", container, check=False))
        raise
    holds_what_runs_alone(inside)


@pytest.mark.verify
def test_a_version_is_trained_in_its_image(
    container: str, kafka: str, bridge: Path, unique: str, tmp_path: Path
) -> None:
    image("training")
    base = made_by("training_tiny_model.py", tmp_path / "base")
    talk = [
        {"role": "user", "content": "small red parcel"},
        {"role": "assistant", "content": "thank you, it ships today"},
    ]
    rows = [[{**turn, "content": f"{turn['content']} {n}"} for turn in talk] for n in range(60)]
    dataset = tmp_path / "demonstrations.jsonl"
    dataset.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in rows))
    dataset.chmod(0o644)
    settings = {
        "RATCHET_KAFKA_BOOTSTRAP": kafka,
        "RATCHET_ADAPTERS_URI": "file:///var/lib/ratchet-adapters",
        "RATCHET_DATASETS_URI": "file:///var/lib/ratchet-adapters/datasets",
        "RATCHET_TRAINING_MODEL": unique,
        "RATCHET_TRAINING_THREADS": "1",
        "RATCHET_TRAINING_ATTEMPTS": "1",
        "RATCHET_TRAINING_EVALUATION": '{"prompts": 8, "max_new_tokens": 8, "question_tokens": 4}',
    }
    volumes = (f"{base}:/model:ro", f"{dataset}:/rows.jsonl:ro", f"{bridge}:/bridge")
    inside = start(container, "training", settings, *volumes, "/var/lib/ratchet-adapters")
    cross(inside, kafka)
    job = TrainingRequested(
        job_id=f"{unique}-sft",
        model=unique,
        method=TrainingMethod.sft,
        base="/model",
        dataset_uri="/rows.jsonl",
        actor="tester",
        # A random model of two layers learns next to nothing; what it is made with is the matter.
        override_gate=True,
        reason="drill",
        requested_at=datetime.now(UTC),
    )
    try:
        ended = asyncio.run(end_of(kafka, job))
        assert ended == (RunPhase.succeeded, f"{unique}-v1.0")
    except AssertionError:
        print(run("podman", "logs", container, check=False))
        raise
    made = run(*inside, "find", "/var/lib/ratchet-adapters", "-name", "adapter_model.safetensors")
    assert made.count("\n") == 1


async def end_of(kafka: str, job: TrainingRequested) -> tuple[RunPhase, str]:
    """Asks for a job; how it ended."""
    log = KafkaLog(KafkaConnection(kafka), source="/ratchet/test")
    await log.start()

    async def ended() -> tuple[RunPhase, str] | None:
        events = await read_events(log, [TRAINING_RUNS], TrainingProgress, timeout_s=60)
        found = [one for one in events if one.job_id == job.job_id and one.phase in FINAL]
        return (found[-1].phase, found[-1].version) if found else None

    try:
        await log.publish(TRAINING_JOBS, key=job.job_id, event=job, event_id=job.job_id)
        found = await eventually(ended, "the job ends", JOB_S)
        assert found is not None
        return found
    finally:
        await log.stop()
