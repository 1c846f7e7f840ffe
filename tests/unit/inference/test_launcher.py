from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from services.inference import guard
from services.inference.drain import EngineDrain
from services.inference.engine import EngineClient, EngineLoad
from services.inference.engine_command import engine_command, engine_environment
from services.inference.launcher import (
    BACKOFF_MAX_S,
    ExternalEngine,
    Launcher,
    LaunchTimings,
    next_generation,
    restart_pause_s,
)
from services.inference.metrics import InferenceMetrics
from services.inference.settings import InferenceSettings
from shared.backoff import Backoff
from shared.clock import SystemClock
from shared.observability.trace_export import traces_url
from tests.support.waiting import eventually, wait_until
from tests.unit.inference.fake_engine import FakeEngine

FAKE = Path(__file__).with_name("fake_engine.py")
QUICK = LaunchTimings(
    start_timeout_s=2.0,
    unhealthy_after_s=0.3,
    poll_s=0.05,
    backoff_first_s=0.05,
    backoff_max_s=0.2,
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def settings(**fields: object) -> InferenceSettings:
    return InferenceSettings.model_validate({"base_model": "some/base", **fields})


class LauncherHarness:
    """A launcher of fake engines, and the processes these started."""

    def __init__(self, folder: Path, session: aiohttp.ClientSession) -> None:
        self.folder = folder
        self.session = session
        self.port = free_port()
        self.pids = folder / "pids"
        self.stop = asyncio.Event()
        self.load = EngineLoad(0, 0, frozenset())
        self.drain = EngineDrain(
            folder / "draining", self._load, SystemClock(), 600.0, asyncio.Event()
        )
        self.heard: list[tuple[bool, str]] = []
        self.launcher: Launcher
        self.task: asyncio.Task[None]

    def start(self, mode: str, policy: LaunchTimings = QUICK) -> Launcher:
        client = EngineClient(self.session, f"http://127.0.0.1:{self.port}")
        self.launcher = Launcher(
            [sys.executable, str(FAKE), str(self.port), mode, str(self.pids)],
            dict(os.environ),
            address=("127.0.0.1", self.port),
            healthy=client.healthy,
            answers=client.answers,
            changed=self._hear,
            generations=self.folder / "generation",
            policy=policy,
            clock=SystemClock(),
            metrics=InferenceMetrics(CollectorRegistry()),
            drain=self.drain,
            log_path=self.folder / "engine.log",
        )
        self.task = asyncio.create_task(self.launcher.run(self.stop))
        return self.launcher

    async def _load(self) -> EngineLoad:
        return self.load

    def _hear(self) -> None:
        self.heard.append((self.launcher.state.ready, self.launcher.state.reason))

    def children(self) -> list[int]:
        return [int(line) for line in self.pids.read_text().split()] if self.pids.exists() else []

    async def reaches(self, condition: Callable[[], bool], what: str) -> None:
        await eventually(condition, what)


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[LauncherHarness]:
    async with aiohttp.ClientSession() as session:
        made = LauncherHarness(tmp_path, session)
        yield made
        made.stop.set()
        await asyncio.wait_for(made.task, 60)
        await made.reaches(lambda: not any(map(alive, made.children())), "no process is left")


async def test_engine_becomes_ready_and_ends_with_its_children(harness: LauncherHarness) -> None:
    launcher = harness.start("serves")
    await harness.reaches(lambda: launcher.state.ready, "ready")
    assert launcher.state.generation == 1
    assert all(map(alive, harness.children()))
    harness.stop.set()
    await harness.task
    assert not any(map(alive, harness.children()))
    assert not launcher.state.ready


async def stopping_with_a_request(harness: LauncherHarness) -> None:
    """Stop the service while its engine writes an answer."""
    harness.drain.marker.touch()
    launcher = harness.start("serves")
    await harness.reaches(lambda: launcher.state.ready, "ready")
    assert not harness.drain.marker.exists()
    harness.load = EngineLoad(1, 0, frozenset())
    harness.stop.set()
    await harness.reaches(harness.drain.marker.exists, "it drains")
    assert (launcher.state.ready, launcher.state.reason) == (False, "stopping")
    assert all(map(alive, harness.children()))


async def test_an_engine_with_a_request_is_stopped_once_that_has_ended(
    harness: LauncherHarness,
) -> None:
    await stopping_with_a_request(harness)
    harness.load = EngineLoad(0, 0, frozenset())
    await asyncio.wait_for(harness.task, 60)
    assert not any(map(alive, harness.children()))


async def test_a_second_signal_stops_an_engine_with_a_request_at_once(
    harness: LauncherHarness,
) -> None:
    await stopping_with_a_request(harness)
    harness.drain.hurry.set()
    await asyncio.wait_for(harness.task, 60)
    assert not any(map(alive, harness.children()))


async def test_dying_engine_is_started_again_with_a_new_generation(
    harness: LauncherHarness,
) -> None:
    launcher = harness.start("dies")
    await harness.reaches(lambda: launcher.state.generation >= 3, "two restarts")
    assert (False, "exited with status 3") in harness.heard
    # A crash loop does not read like a first start.
    assert [reason for _, reason in harness.heard if reason.startswith("starting")][:3] == [
        "starting",
        "starting again: ended by itself 1 times in a row; last: exited with status 3",
        "starting again: ended by itself 2 times in a row; last: exited with status 3",
    ]
    assert not any(map(alive, harness.children()[:2]))


async def test_an_engine_that_dies_at_its_first_request_is_never_ready(
    harness: LauncherHarness,
) -> None:
    """Its health check is well: no layer of the model has run by then."""
    launcher = harness.start("dies at first")
    await harness.reaches(lambda: launcher.state.generation >= 3, "two restarts")
    assert (False, "exited with status 4 at its first request") in harness.heard
    assert not any(ready for ready, _ in harness.heard)


async def test_engine_that_never_answers_is_given_up(harness: LauncherHarness) -> None:
    policy = LaunchTimings(0.3, 0.3, 0.05, 0.05, 0.2)
    launcher = harness.start("never", policy)
    await harness.reaches(lambda: launcher.state.generation >= 2, "a second start")
    assert any("ENGINE_START_TIMEOUT_S" in reason for _, reason in harness.heard)


async def test_engine_without_healthy_answers_is_started_again(harness: LauncherHarness) -> None:
    launcher = harness.start("sickens")
    await harness.reaches(lambda: launcher.state.generation >= 2, "a second start")
    assert any("no healthy answer" in reason for _, reason in harness.heard)


async def test_restart_on_request(harness: LauncherHarness) -> None:
    launcher = harness.start("serves")
    await harness.reaches(lambda: launcher.state.ready, "ready")
    launcher.restart("its adapters mix")
    await harness.reaches(lambda: launcher.state.ready and launcher.state.generation == 2, "again")
    assert (False, "restarting: its adapters mix") in harness.heard


async def test_port_of_somebody_else_is_said_and_left_alone(harness: LauncherHarness) -> None:
    with FakeEngine() as other:
        harness.port = other.server.server_port
        launcher = harness.start("serves")
        await harness.reaches(lambda: "cannot be taken" in launcher.state.reason, "it says so")
        assert not launcher.state.ready
        assert not harness.children()


async def test_external_engine_has_a_new_generation_each_time_it_is_back(tmp_path: Path) -> None:
    stop = asyncio.Event()
    async with aiohttp.ClientSession() as session:
        with FakeEngine() as fake:
            watcher = ExternalEngine(
                healthy=EngineClient(session, fake.url).healthy,
                changed=lambda: None,
                generations=tmp_path / "generation",
                clock=SystemClock(),
                metrics=InferenceMetrics(CollectorRegistry()),
                poll_s=0.02,
            )
            task = asyncio.create_task(watcher.run(stop))
            await eventually(lambda: watcher.state.ready, "seen")
            fake.healthy = False
            await eventually(lambda: not watcher.state.ready, "lost")
            fake.healthy = True
            await eventually(lambda: watcher.state.ready, "back")
            assert watcher.state.generation == 2
            stop.set()
            await task


def guarded(tmp_path: Path, mode: str) -> tuple[subprocess.Popen[bytes], list[int]]:
    """A guard with a fake engine, started by a parent that we can kill; returns all pids."""
    pids = tmp_path / "pids"
    code = (
        "import subprocess, sys, time\n"
        "guard = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)\n"
        "print(guard.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    engine = [sys.executable, str(FAKE), str(free_port()), mode, str(pids)]
    parent = subprocess.Popen(
        [sys.executable, "-c", code, sys.executable, str(guard.__file__), *engine],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    guard_pid = int(parent.stdout.readline())
    wait_until(lambda: pids.exists() and pids.read_text().endswith("\n"), "the engine runs")
    return parent, [guard_pid, *guard.descendants(guard_pid)]


def test_killed_service_takes_the_engine_and_its_children_along(tmp_path: Path) -> None:
    parent, processes = guarded(tmp_path, "serves")
    assert len(processes) == 3
    with parent:
        parent.kill()
    wait_until(lambda: not any(map(alive, processes)), "all are gone")


def test_killed_guard_takes_the_engine_along(tmp_path: Path) -> None:
    parent, processes = guarded(tmp_path, "never")
    guard_pid, engine, child = processes
    os.kill(guard_pid, signal.SIGKILL)
    wait_until(lambda: not alive(engine), "the engine is gone")
    with contextlib.suppress(ProcessLookupError):
        os.killpg(guard_pid, signal.SIGKILL)
    wait_until(lambda: not alive(child), "its child is gone with the group")
    with parent:
        parent.kill()


def test_guard_passes_the_engines_status_on(tmp_path: Path) -> None:
    command = [sys.executable, str(guard.__file__), sys.executable, str(FAKE), "0", "dies"]
    with subprocess.Popen([*command, str(tmp_path / "pids")], stdin=subprocess.PIPE) as process:
        assert process.wait(20) == 3
    child = int((tmp_path / "pids").read_text())
    assert not alive(child)


@given(st.lists(st.floats(0, 1000), max_size=30))
def test_backoff_is_bounded_and_starts_anew_after_a_steady_life(lives: list[float]) -> None:
    policy = LaunchTimings(1, 1)
    backoff = Backoff(policy.backoff_first_s, policy.backoff_max_s)
    for lived in lives:
        wait = restart_pause_s(backoff, lived)
        assert policy.backoff_first_s <= wait <= BACKOFF_MAX_S
        assert lived < 120 or wait == policy.backoff_first_s


def test_generations_rise_across_restarts_and_survive_a_torn_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "generation"
    assert [next_generation(path), next_generation(path)] == [1, 2]
    path.write_text("")
    assert next_generation(path) == 1


def test_cpu_profile_computes_in_float32() -> None:
    made = settings(engine_url="http://127.0.0.1:18000", engine_options="--seed 7")
    command = engine_command(made)
    assert "--disable-uvicorn-access-log" in command
    # vLLM on CPU applies what lies in the last slot to the base: it must stay empty.
    assert int(command[command.index("--max-loras") + 1]) > made.max_adapters
    assert command[1:5] == ["-m", "vllm.entrypoints.openai.api_server", "--model", "some/base"]
    assert command[command.index("--dtype") + 1] == "float32"
    assert command[command.index("--port") + 1] == "18000"
    assert command[-2:] == ["--seed", "7"]
    assert "--gpu-memory-utilization" not in command
    environment = engine_environment(made, {"HOME": "h"})
    assert environment["HOME"] == "h"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert "OMP_NUM_THREADS" not in environment
    one = engine_environment(settings(engine_threads=1), {})
    assert (one["OMP_NUM_THREADS"], one["VLLM_CPU_OMP_THREADS_BIND"]) == ("1", "nobind")


def test_tool_calls_are_parsed_where_a_parser_is_named() -> None:
    assert "--enable-auto-tool-choice" not in engine_command(settings())
    command = engine_command(settings(tool_parser="hermes"))
    assert "--enable-auto-tool-choice" in command
    assert command[command.index("--tool-call-parser") + 1] == "hermes"


COLLECTOR = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/"}
TRACES = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://traces:4318/otlp"}


@pytest.mark.parametrize(
    ("given", "endpoint"),
    [
        (COLLECTOR, "http://collector:4318/v1/traces"),
        ({**COLLECTOR, **TRACES}, "http://traces:4318/otlp"),
        ({**COLLECTOR, "OTEL_SDK_DISABLED": "true"}, ""),
        ({**TRACES, "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({}, ""),
    ],
)
def test_the_engine_exports_its_spans_where_the_service_does(
    given: dict[str, str], endpoint: str
) -> None:
    command = engine_command(settings(engine_options="--seed 7"), traces_url(given))
    environment = engine_environment(settings(), given)
    assert command[-2:] == ["--seed", "7"]
    if endpoint:
        assert command[command.index("--otlp-traces-endpoint") + 1] == endpoint
        assert environment["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"
        assert environment["OTEL_SERVICE_NAME"] == "ratchet-engine"
        assert "OTEL_SDK_DISABLED" not in environment
    else:
        assert "--otlp-traces-endpoint" not in command
        # Its core would export wherever an endpoint is set.
        assert environment.get("OTEL_SDK_DISABLED", "") == ("true" if given else "")


def test_the_engine_has_the_name_that_an_operator_gave() -> None:
    named = engine_environment(settings(), {**COLLECTOR, "OTEL_SERVICE_NAME": "mine"})
    assert named["OTEL_SERVICE_NAME"] == "mine"


def test_engine_asks_a_hub_for_a_hub_id_only(tmp_path: Path) -> None:
    named, folder = settings(base_model="some/base"), settings(base_model=str(tmp_path))
    assert "HF_HUB_OFFLINE" not in engine_environment(named, {})
    assert engine_environment(folder, {})["HF_HUB_OFFLINE"] == "1"
    for made, said in ((named, "1"), (folder, "0")):
        assert engine_environment(made, {"HF_HUB_OFFLINE": said})["HF_HUB_OFFLINE"] == said


def test_the_model_runs_in_the_engines_process_on_cpu_only() -> None:
    def executor(**changes: Any) -> tuple[bool, str]:
        made = settings(**changes)
        environment = engine_environment(made, {})
        return "uni" in engine_command(made), environment.get("VLLM_ENABLE_V1_MULTIPROCESSING", "")

    assert executor() == (True, "0")
    assert executor(engine_profile="gpu") == (False, "")


def test_gpu_profile_computes_in_bfloat16_over_its_gpus() -> None:
    made = settings(engine_profile="gpu", tensor_parallel=2, engine_bind="0.0.0.0")
    command = engine_command(made)
    assert command[command.index("--dtype") + 1] == "bfloat16"
    assert command[command.index("--tensor-parallel-size") + 1] == "2"
    assert command[command.index("--host") + 1] == "0.0.0.0"
    assert "VLLM_CPU_KVCACHE_SPACE" not in engine_environment(made, {})
    assert made.tolerance_of("float32") == 0.1


@pytest.mark.parametrize(
    ("given", "revision"),
    [
        ({}, "main"),
        ({"engine_options": "--seed 7 --revision cafe"}, "cafe"),
        ({"engine_options": "--revision=cafe --seed=7"}, "cafe"),
        ({"base_revision": "v2"}, "v2"),
        ({"base_model": "org/newer", "base_revision": "org/older@v1,org/newer@v2"}, "v2"),
        ({"base_model": "org/newer", "base_revision": "org/older@v1"}, "main"),
    ],
    ids=["neither", "option", "option with =", "setting", "of two bases", "another's"],
)
def test_the_base_is_hashed_at_the_revision_that_the_engine_serves(
    given: dict[str, str], revision: str
) -> None:
    assert settings(**given).served_revision == revision


def test_the_engine_takes_model_and_tokenizer_at_one_revision(tmp_path: Path) -> None:
    command = engine_command(settings(base_revision="v2"))
    assert command[command.index("--revision") + 1] == "v2"
    assert command[command.index("--tokenizer-revision") + 1] == "v2"
    assert "--revision" not in engine_command(
        settings(base_model=str(tmp_path), base_revision="v2")
    )
    with pytest.raises(ValueError, match="RATCHET_BASE_REVISION: is v2, and --revision"):
        settings(base_revision="v2", engine_options="--revision cafe")
