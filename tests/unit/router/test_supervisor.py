"""The supervisor with small scripts in place of routers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from services.router import supervisor as supervisor_module
from services.router.supervisor import ProcessSupervisor
from tests.support.waiting import eventually

WAITS = """
import os, pathlib, sys, time
(pathlib.Path(sys.argv[1]) / f"{sys.argv[2]}-{os.getpid()}").touch()
time.sleep(60)
"""
HEEDS_NOTHING = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + WAITS
FAILS = """
import os, pathlib, sys
(pathlib.Path(sys.argv[1]) / f"{sys.argv[2]}-{os.getpid()}").touch()
sys.exit(3)
"""


def supervisor(script: str, directory: Path, count: int, stop_s: float = 30) -> ProcessSupervisor:
    command = [sys.executable, "-S", "-c", script, str(directory)]
    return ProcessSupervisor(command, count, stop_timeout_s=stop_s)


def started(directory: Path) -> list[tuple[int, int]]:
    """Number and process id of every process that was ever started."""
    names = [path.name.split("-") for path in directory.iterdir()]
    return [(int(number), int(pid)) for number, pid in names]


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "RESTART_FIRST_S", 0.01)
    monkeypatch.setattr(supervisor_module, "RESTART_MAX_S", 0.02)


async def test_a_killed_process_is_started_again_and_all_end_together(tmp_path: Path) -> None:
    stop = asyncio.Event()
    running = asyncio.create_task(supervisor(WAITS, tmp_path, 2).run(stop))
    await eventually(lambda: len(started(tmp_path)) == 2, "both run")
    killed = next(pid for number, pid in started(tmp_path) if number == 1)
    os.kill(killed, signal.SIGKILL)
    await eventually(lambda: len(started(tmp_path)) == 3, "it was started again")
    assert sorted(number for number, _ in started(tmp_path)) == [0, 1, 1]
    stop.set()
    assert await running == 0
    assert not any(lives(pid) for _, pid in started(tmp_path))


async def test_what_heeds_no_sigterm_is_killed_at_its_deadline(tmp_path: Path) -> None:
    stop = asyncio.Event()
    running = asyncio.create_task(supervisor(HEEDS_NOTHING, tmp_path, 1, stop_s=0.1).run(stop))
    await eventually(lambda: bool(started(tmp_path)), "it runs")
    stop.set()
    assert await running == 0
    assert not lives(started(tmp_path)[0][1])


async def test_a_process_that_cannot_stay_up_ends_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "MAX_RESTARTS", 2)
    assert await supervisor(FAILS, tmp_path, 1).run(asyncio.Event()) == 1
    assert len(started(tmp_path)) == 3


async def test_a_process_that_cannot_be_started_now_is_tried_again_and_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = asyncio.create_subprocess_exec
    refused: list[str] = []

    async def no_room(*command: str, **more: Any) -> asyncio.subprocess.Process:
        if command[-1] == "1" and len(refused) < 3:
            refused.append(command[-1])
            raise BlockingIOError("fork: Resource temporarily unavailable")
        return await start(*command, **more)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", no_room)
    stop = asyncio.Event()
    running = asyncio.create_task(supervisor(WAITS, tmp_path, 2).run(stop))
    await eventually(lambda: len(started(tmp_path)) == 2, "both run")
    assert len(refused) == 3
    assert sorted(number for number, _ in started(tmp_path)) == [0, 1]
    stop.set()
    assert await running == 0
