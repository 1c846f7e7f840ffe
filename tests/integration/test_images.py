"""The images, built from the Dockerfile and started as the chart starts them: confined, as nobody.

The base is Debian 12 by debootstrap, as no registry of images is asked; buildah and podman need root.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import pytest

from deploy.local.processes import ROOT
from services.aggregator.__main__ import EXIT_FAILED
from tests.support.waiting import wait_until

BUILD_TIMEOUT_S = 3_000.0
MAX_LIGHT_MB = 250
MAX_ML_MB = 7_500
"""Of the lock's torch from the package index, whose libraries of CUDA are two thirds."""
NOBODY = "10001"
TOOLS = ("pip", "pip3", "gcc", "cc", "ld", "strip", "git")
LIGHT = ("router", "feedback", "rollout")
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
    name: str, target: str, given: Mapping[str, str] | None = None, *volumes: str
) -> tuple[str, ...]:
    """Starts an image confined; returns how a command in it begins."""
    settings = [f"--env={name}={text}" for name, text in {**SETTINGS, **(given or {})}.items()]
    mounted = [f"--volume={volume}" for volume in volumes]
    found = f"localhost/ratchet/{target}"
    podman = ("podman", "--runtime", "runc")
    run(*podman, "run", "--detach", "--name", name, *CONFINED, *settings, *mounted, found)
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
def test_the_command_has_its_image() -> None:
    image("cli")
    podman = ("podman", "--runtime", "runc", "run", "--rm", *CONFINED)
    assert "Usage: ratchet [OPTIONS]" in run(*podman, "localhost/ratchet/cli", "--help")
