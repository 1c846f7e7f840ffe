"""The bare ASGI proxy under other servers: what a request costs under uvicorn, granian and pyvoy.

    python -m benchmarks.servers .venv-servers/bin/python [--rounds 5] [--seconds 2]

PYTHON is that of an environment with the same aiohttp and uvloop and with granian and pyvoy; nothing of
the project needs them, so no lock has them:

    uv venv .venv-servers
    uv pip install --python .venv-servers/bin/python granian==2.8.7 pyvoy==1.3.0
    uv pip install --python .venv-servers/bin/python aiohttp uvloop uvicorn httptools

All are up the whole time, on core 0, the stub engine and the load on core 1; in each round each has its
turn. Printed is the median of the rounds: processor time of a request at 32 connections, and what one
over one connection takes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

from benchmarks.proxies import (
    OTHER_CORE,
    PROXY_CORE,
    await_answer,
    cpu_seconds,
    process,
    resident_mib,
)
from benchmarks.proxy_load import LOAD, Load, first_answer, wrk
from benchmarks.router_stack import bare_proxy
from deploy.local.ports import HOST, free_ports

CONNECTIONS = 32


def commands(python: Path, directory: Path, ports: dict[str, int]) -> dict[str, list[str]]:
    """How each server is started with the bare proxy, one worker each."""
    uvicorn = list(bare_proxy(directory, ports["uvicorn"]))
    programs = python.parent
    return {
        "uvicorn": [str(python), *uvicorn[1:]],
        "granian": [str(programs / "granian"), "--interface", "asginl", "--host", HOST, "--port",
                    str(ports["granian"]), "--loop", "uvloop", "--runtime-mode", "st",
                    "--no-log", "--no-access-log", "bare_proxy:app"],
        "pyvoy": [str(programs / "pyvoy"), "--address", HOST, "--port", str(ports["pyvoy"]),
                  "--loop", "uvloop", "--no-lifespan", "--log-level", "error",
                  "bare_proxy:app"],
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("python", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    given = parser.parse_args()
    os.sched_setaffinity(0, {OTHER_CORE})
    ports = free_ports(["stub", "uvicorn", "granian", "pyvoy"])
    cpu_us: dict[str, list[float]] = defaultdict(list)
    alone_ms: dict[str, list[float]] = defaultdict(list)
    mib: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="ratchet-bench-") as name, ExitStack() as stack:
        directory = Path(name)
        script = directory / "load.lua"
        script.write_text(LOAD)
        load = Load(script, given.seconds, CONNECTIONS)
        engine = f"http://{HOST}:{ports['stub']}"
        command = [sys.executable, "-m", "benchmarks.stub_engine", "--port", str(ports["stub"])]
        stub = stack.enter_context(process(command, directory / "stub.log", OTHER_CORE))
        await_answer(engine, stub, directory / "stub.log")
        pids: dict[str, int] = {}
        for server, started in commands(given.python.absolute(), directory, ports).items():
            log = directory / f"{server}.log"
            environment = {"UPSTREAM": engine, "PYTHONPATH": name}
            running = stack.enter_context(process(started, log, PROXY_CORE, environment))
            await_answer(f"http://{HOST}:{ports[server]}/", running, log)
            first_answer(f"http://{HOST}:{ports[server]}")
            pids[server] = running.pid
        for number in range(given.rounds):
            for server in list(pids)[:: 1 if number % 2 else -1]:
                url = f"http://{HOST}:{ports[server]}"
                before = cpu_seconds(pids[server])
                done = wrk(url, load, given.seconds, CONNECTIONS)["requests"]
                cpu_us[server].append((cpu_seconds(pids[server]) - before) / done * 1e6)
                alone_ms[server].append(wrk(url, load, given.seconds, 1)["p50_ms"])
                mib[server] = resident_mib(pids[server])
    print(f"{given.rounds} rounds of {given.seconds} s, load average {os.getloadavg()[0]:.1f}")
    print(f"{'server':10}{'CPU µs':>8}{'(min–max)':>14}{'p50 ms at c=1':>15}{'MiB':>6}")
    for server, costs in cpu_us.items():
        spread = f"({min(costs):.0f}–{max(costs):.0f})"
        print(
            f"{server:10}{statistics.median(costs):8.0f}{spread:>14}"
            f"{statistics.median(alone_ms[server]):15.2f}{mib[server]:6.0f}"
        )


if __name__ == "__main__":
    main()
