"""Two router processes on one port beside one: what a request costs each, and what both get done.

    python -m benchmarks.router_processes [--rounds 4] [--seconds 5] [--connections 64]

The load (wrk), the stub engine, Kafka and Redis need processor time, too, and on a machine of two
cores they take it from the second process. So two things are measured, in turns of one process and
two, none of them bound to a core:

- *requests by CPU second*: of the router's own processor time, all its processes together. What two
  processes lose by there being two of them (shared caches, the kernel's work on one port, twice the
  work that is done once a second) shows here;
- *requests/s by the clock*, with the cores that the router had meanwhile, of which one process can
  use one at most.

Two processes with a core each do twice what the cost of a request lets one do: this product is the
factor that is judged. It is computed; the clock's is what this machine had left for it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.proxies import await_answer, cpu_seconds, process
from benchmarks.proxy_load import LOAD, Load, first_answer, wrk
from benchmarks.router_stack import router_stack
from deploy.local.ports import HOST, free_ports

PROCESSES = 2
GOAL_FACTOR = 1.8
SETTLE_S = 0.5
"""In which the events of a load are shipped; the time that this takes counts."""


@dataclass(frozen=True, slots=True)
class ProcessTurn:
    """One load on a router."""

    rps: float
    """By the clock."""
    core_rps: float
    """By second of the router's processor time."""
    cores: float
    """How many cores the router had while the load ran."""


def turn(url: str, pid: int, load: Load) -> ProcessTurn:
    """One load, with what it cost the router."""
    before = cpu_seconds(pid)
    found = wrk(url, load, load.seconds, load.connections)
    during_s = cpu_seconds(pid) - before
    time.sleep(SETTLE_S)
    used_s = cpu_seconds(pid) - before
    return ProcessTurn(
        found["requests"] / found["seconds"],
        found["requests"] / used_s,
        during_s / found["seconds"],
    )


def table(turns: dict[int, list[ProcessTurn]]) -> Iterator[str]:
    """The medians of the turns, aligned."""
    yield f"{'processes':>10}{'by CPU second':>15}{'by the clock':>14}{'cores':>7}"
    for processes, of in turns.items():
        yield (
            f"{processes:>10}{_middle(of, 'core_rps'):>15,.0f}{_middle(of, 'rps'):>14,.0f}"
            f"{_middle(of, 'cores'):>7.2f}"
        )


def _middle(turns: Sequence[ProcessTurn], name: str) -> float:
    return statistics.median(getattr(one, name) for one in turns)


def main() -> int:
    """Print the table; exit status 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description="two router processes on one port beside one")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=64)
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing; make setup installs it")
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    ports = free_ports(["stub", "one", "two", "operations"])
    with tempfile.TemporaryDirectory(prefix="ratchet-bench-") as name, ExitStack() as stack:
        directory = Path(name)
        script = directory / "chat.lua"
        script.write_text(LOAD)
        load = Load(script, given.seconds, given.connections)
        engine = f"http://{HOST}:{ports['stub']}"
        command = [sys.executable, "-m", "benchmarks.stub_engine", "--port", str(ports["stub"])]
        stub = stack.enter_context(process(command, directory / "stub.log", cores))
        await_answer(engine, stub, directory / "stub.log")
        servers = stack.enter_context(router_stack(directory))
        one = stack.enter_context(servers.router(engine, ports["one"], name="one", cores=cores))
        two = stack.enter_context(
            servers.router(
                engine,
                ports["two"],
                name="two",
                cores=cores,
                processes=PROCESSES,
                operations_port=ports["operations"],
            )
        )
        running = {1: (ports["one"], one.pid), PROCESSES: (ports["two"], two.pid)}
        turns: dict[int, list[ProcessTurn]] = {processes: [] for processes in running}
        for port, _ in running.values():
            first_answer(f"http://{HOST}:{port}")
            wrk(f"http://{HOST}:{port}", load, 1, given.connections)
        for number in range(given.rounds):
            print(f"round {number + 1} of {given.rounds} …", flush=True)
            order = list(running) if number % 2 else list(reversed(running))
            for processes in order:
                port, pid = running[processes]
                turns[processes].append(turn(f"http://{HOST}:{port}", pid, load))
    print(
        f"\n{given.rounds} rounds, {given.connections} connections, {len(cores.split(','))} cores"
    )
    print("\n".join(table(turns)))
    shares = [b.core_rps / a.core_rps for a, b in zip(turns[1], turns[PROCESSES], strict=True)]
    factor = PROCESSES * statistics.median(shares)
    clock = _middle(turns[PROCESSES], "rps") / _middle(turns[1], "rps")
    print(f"by the clock {clock:.2f} times as many, where load, engine and Kafka share the cores")
    well = factor >= GOAL_FACTOR
    print(
        f"{'reached' if well else 'MISSED'}: {PROCESSES} processes with a core each do "
        f"{factor:.2f} times as many ({PROCESSES * min(shares):.2f}-{PROCESSES * max(shares):.2f}, "
        f"computed; goal {GOAL_FACTOR})"
    )
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
