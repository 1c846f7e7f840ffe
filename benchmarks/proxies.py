"""Processes under measurement: started on one core, awaited, and their CPU time and memory read."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PROXY_CORE, OTHER_CORE = 0, 1
START_TIMEOUT_S = 180.0
ROOT = Path(__file__).parents[1]


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and its children that live."""
    ticks = 0
    for each in [pid, *children(pid)]:
        fields = Path(f"/proc/{each}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Resident memory of a process and its children that live."""
    kib = 0
    for each in [pid, *children(pid)]:
        status = Path(f"/proc/{each}/status").read_text()
        kib += int(status.split("VmRSS:")[1].split()[0])
    return kib / 1024


def children(pid: int) -> list[int]:
    """All descendants of a process."""
    direct = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [one for child in direct for one in (int(child), *children(int(child)))]


@contextmanager
def process(
    command: Sequence[str],
    log: Path,
    cores: int | str,
    env: dict[str, str] | None = None,
    root: Path = ROOT,
) -> Iterator[subprocess.Popen[bytes]]:
    """A program on one core, or on some as taskset takes them, ended on leaving."""
    with log.open("wb") as output:
        started = subprocess.Popen(
            ["taskset", "-c", str(cores), *command],
            cwd=root,
            env={**os.environ, **(env or {})},
            stdout=output,
            stderr=output,
        )
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(20)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def await_answer(url: str, running: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a URL answers 200."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if running.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{url} does not answer:\n{log.read_text()[-2000:]}") from None
            time.sleep(0.1)
