"""What a request costs the router and what it adds to its time, beside the bare ASGI proxy, in turns.

    python -m benchmarks.router_hotpath [--rounds 6] [--seconds 2] [--against DIRECTORY]

One run, one stub engine, a real Kafka and Redis; all proxies are up the whole time, on core 0, and
the stub and the load on core 1. In each round each proxy has its turn, so what else the machine does
meets all alike; printed is the median of the rounds. `--against` is another checkout of this project,
whose router takes part, too: what a change gains is the difference between the two.

- *CPU µs*: processor time of a request at 32 connections, until its event is with the brokers: whole
  answers, and streams of 16 tokens that the engine sends at once;
- *p50*, *p99*: of whole answers over one connection, in milliseconds from the request's first byte to
  the answer's last; *first*: the same to a stream's first token;
- *1000/s*: p99 at 1,000 requests a second, each timed from the moment at which it was due.

Of the stub alone all times are shown, of the proxies what they add to them. Times by the clock are
worth little on a machine that has other work. So the routers then run once more, with a watch
(`benchmarks.timed_router`), and their own processor time on the way of a request is printed: to the
engine, and from what the engine sent to the first byte for the client.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import orjson

from benchmarks.fixed_rate import Target, at_fixed_rate
from benchmarks.proxies import (
    OTHER_CORE,
    PROXY_CORE,
    ROOT,
    await_answer,
    cpu_seconds,
    process,
)
from benchmarks.proxy_load import LOAD, PATH, USERS, Load, first_answer, wrk
from benchmarks.router_stack import RouterStack, bare_proxy, router_stack
from benchmarks.timed_router import TIMED_ROUTER
from deploy.local.ports import HOST, free_ports

ROUTERS = {"ratchet": "router", "other": "router of the other"}
CONNECTIONS = 32
ALONE = 1_000
"""Requests over one connection, in each round."""
RATE = 1_000
RATE_S = 3.0
SETTLE_S = 0.5
"""In which the events of a load are shipped; the time that this takes counts."""
TOKEN = b'"content":"'
LAST = b"0\r\n\r\n"
GOAL_SHARE_OF_BARE = 0.6
GOAL_ADDED_P50_MS = 0.25
GOAL_ADDED_P99_MS = 2.0
GOAL_ADDED_FIRST_MS = 0.5


@dataclass(frozen=True, slots=True)
class Turn:
    """One proxy in one round. Times are in milliseconds, CPU in microseconds a request."""

    cpu_us: float
    stream_cpu_us: float
    p50_ms: float
    p99_ms: float
    first_p50_ms: float
    first_p99_ms: float
    rate_p99_ms: float


@dataclass(frozen=True, slots=True)
class ProxyUnderTest:
    """A proxy under measurement; the stub alone has no process."""

    name: str
    port: int
    running: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://{HOST}:{self.port}"


def body(number: int, *, stream: bool = False) -> bytes:
    """A request's body, as that of `benchmarks.proxy_load`."""
    asked = {
        "model": "assistant",
        "user": f"user-{number % USERS}",
        "messages": [
            {"role": "system", "content": "You are a helpful support assistant."},
            {"role": "user", "content": "Where is my parcel? I ordered it last week."},
        ],
        "max_tokens": 64,
        "temperature": 0.7,
    }
    return orjson.dumps({**asked, "stream": True} if stream else asked)


def alone(proxy: ProxyUnderTest, *, stream: bool) -> list[float]:
    """Milliseconds of requests over one connection: to the answer's end, or to a first token."""
    target = Target(HOST, proxy.port, PATH, lambda number: body(number, stream=stream))
    times: list[float] = []
    with socket.create_connection((HOST, proxy.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(ALONE):
            request = target.request(number)
            began = perf_counter()
            connection.sendall(request)
            ended = _read(connection, stream=stream)
            times.append((ended - began) * 1000)
    return times


def _read(connection: socket.socket, *, stream: bool) -> float:
    """Read one answer; when it was whole, or its first token there."""
    data = connection.recv(65_536)
    assert data.startswith(b"HTTP/1.1 200"), data[:200]
    if not stream:
        head, _, rest = data.partition(b"\r\n\r\n")
        left = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]) - len(rest)
        while left > 0:
            left -= len(connection.recv(65_536))
        return perf_counter()
    first = 0.0
    while not data.endswith(LAST):
        if not first and _has_token(data):
            first = perf_counter()
        data += connection.recv(65_536)
    return first or perf_counter()


def _has_token(data: bytes) -> bool:
    """Whether an event with text is there; JSON may have white space or none."""
    squeezed = data.replace(b'": "', b'":"')
    return squeezed.count(TOKEN) > squeezed.count(TOKEN + b'"')


class Rounds:
    """The proxies, and the loads that each of them has in its turn."""

    def __init__(self, directory: Path, seconds: int) -> None:
        whole, streamed = directory / "whole.lua", directory / "streamed.lua"
        whole.write_text(LOAD)
        streamed.write_text(LOAD.replace('"max_tokens"', '"stream":true,"max_tokens"'))
        self._whole = Load(whole, seconds, CONNECTIONS)
        self._streamed = Load(streamed, seconds, CONNECTIONS)

    def warm_up(self, proxy: ProxyUnderTest) -> None:
        """Load what a proxy loads with its first requests."""
        first_answer(proxy.url)
        for load in (self._whole, self._streamed):
            wrk(proxy.url, load, 1, CONNECTIONS)

    def turn(self, proxy: ProxyUnderTest) -> Turn:
        """All loads on one proxy."""
        whole = sorted(alone(proxy, stream=False))
        first = sorted(alone(proxy, stream=True))
        target = Target(HOST, proxy.port, PATH, body)
        at_rate = asyncio.run(at_fixed_rate(target, rate=RATE, seconds=RATE_S, expected=200))
        assert not at_rate.failed, f"{proxy.name}: {at_rate.failed} requests failed"
        return Turn(
            self._cpu_us(proxy, self._whole),
            self._cpu_us(proxy, self._streamed),
            statistics.median(whole),
            whole[int(0.99 * len(whole))],
            statistics.median(first),
            first[int(0.99 * len(first))],
            at_rate.percentile_ms(99),
        )

    def _cpu_us(self, proxy: ProxyUnderTest, load: Load) -> float:
        if proxy.running is None:
            return 0.0
        before = cpu_seconds(proxy.running.pid)
        found = wrk(proxy.url, load, load.seconds, load.connections)
        time.sleep(SETTLE_S)
        return (cpu_seconds(proxy.running.pid) - before) / found["requests"] * 1e6


def measured(
    rounds: Rounds, proxies: Sequence[ProxyUnderTest], count: int
) -> dict[str, list[Turn]]:
    """Each proxy's turns; a round begins with another proxy than the one before."""
    turns: dict[str, list[Turn]] = {proxy.name: [] for proxy in proxies}
    for proxy in proxies:
        rounds.warm_up(proxy)
    for number in range(count):
        print(f"round {number + 1} of {count} …", flush=True)
        start = number % len(proxies)
        for proxy in (*proxies[start:], *proxies[:start]):
            turns[proxy.name].append(rounds.turn(proxy))
    return turns


def path_times(servers: RouterStack, engine: str, port: int, root: Path) -> dict[str, float]:
    """Median microseconds of a router's processor time for which requests and answers waited."""
    found = servers.directory / "times.json"
    program = ("-c", TIMED_ROUTER, str(found))
    with servers.router(engine, port, name="timed", root=root, program=program):
        timed = ProxyUnderTest("timed", port)
        first_answer(timed.url)
        for stream in (False, True) * 3:
            alone(timed, stream=stream)
    times: dict[str, list[float]] = orjson.loads(found.read_bytes())
    return {name: statistics.median(of) for name, of in times.items()}


def path_table(paths: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """The medians of `path_times`, of several runs in turns."""
    heads = {"to_engine": "to engine", "whole": "whole answer", "first": "first token"}
    yield f"{'CPU µs on the way':24}" + "".join(f"{head:>14}" for head in heads.values())
    for name, runs in paths.items():
        found = [statistics.median(run[head] for run in runs) for head in heads]
        yield f"{name:24}" + "".join(f"{value:>14.1f}" for value in found)


def middle(turns: Sequence[Turn], value: Callable[[Turn], float]) -> float:
    """The median of a value over some turns."""
    return statistics.median(map(value, turns))


def spread(turns: Sequence[Turn], value: Callable[[Turn], float]) -> str:
    """The least and the greatest of it."""
    found = [value(turn) for turn in turns]
    return f"{min(found):,.0f}-{max(found):,.0f}"


TIMES: dict[str, Callable[[Turn], float]] = {
    "p50": lambda turn: turn.p50_ms,
    "p99": lambda turn: turn.p99_ms,
    "first p50": lambda turn: turn.first_p50_ms,
    "first p99": lambda turn: turn.first_p99_ms,
    "1000/s p99": lambda turn: turn.rate_p99_ms,
}


def table(turns: dict[str, list[Turn]]) -> Iterator[str]:
    """The lines of the table; the first proxy is the stub alone."""
    stub, *_ = turns.values()
    heads = ("CPU µs", "from-to", "stream µs", *TIMES)
    yield f"{'':24}" + "".join(f"{head:>12}" for head in heads)
    for name, of in turns.items():
        costs = [""] * 3
        if of is not stub:
            costs = [
                f"{middle(of, lambda turn: turn.cpu_us):,.0f}",
                spread(of, lambda turn: turn.cpu_us),
                f"{middle(of, lambda turn: turn.stream_cpu_us):,.0f}",
            ]
        less = [0.0 if of is stub else middle(stub, value) for value in TIMES.values()]
        times = [middle(of, value) - base for value, base in zip(TIMES.values(), less, strict=True)]
        yield (
            f"{name:24}"
            + "".join(f"{cost:>12}" for cost in costs)
            + "".join(f"{time_ms:>12.3f}" for time_ms in times)
        )


def verdicts(turns: dict[str, list[Turn]]) -> Iterator[tuple[bool, str]]:
    """The router's figures against the goals."""
    stub, bare, ours, *_ = turns.values()
    shares = [
        one.cpu_us / other.cpu_us for one, other in zip(bare, ours, strict=True)
    ]  # of the same round
    share = statistics.median(shares)
    yield (
        share >= GOAL_SHARE_OF_BARE,
        f"{share:.0%} ({min(shares):.0%}-{max(shares):.0%}) of the bare proxy's requests by CPU "
        f"second (goal {GOAL_SHARE_OF_BARE:.0%})",
    )
    goals = {
        "p50": GOAL_ADDED_P50_MS,
        "first p50": GOAL_ADDED_FIRST_MS,
        "1000/s p99": GOAL_ADDED_P99_MS,
    }
    for name, goal in goals.items():
        added = middle(ours, TIMES[name]) - middle(stub, TIMES[name])
        yield added <= goal, f"{added:.2f} ms added to {name} (goal {goal} ms)"


def main() -> int:
    """Print the table; exit status 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description="the router's hot path, in turns")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=int, default=2, help="of each load by connections")
    parser.add_argument("--against", type=Path, help="another checkout, whose router takes part")
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing; make setup installs it")
    os.sched_setaffinity(0, {OTHER_CORE})
    started_at = os.getloadavg()[0]
    ports = free_ports(["stub", "bare", "ratchet", "other", "timed"])
    with tempfile.TemporaryDirectory(prefix="ratchet-bench-") as name, ExitStack() as stack:
        directory = Path(name)
        engine = f"http://{HOST}:{ports['stub']}"
        command = [sys.executable, "-m", "benchmarks.stub_engine", "--port", str(ports["stub"])]
        stub = stack.enter_context(process(command, directory / "stub.log", OTHER_CORE))
        await_answer(engine, stub, directory / "stub.log")
        bare = stack.enter_context(
            process(
                bare_proxy(directory, ports["bare"]),
                directory / "bare.log",
                PROXY_CORE,
                {"UPSTREAM": engine},
            )
        )
        await_answer(f"http://{HOST}:{ports['bare']}/", bare, directory / "bare.log")
        servers = stack.enter_context(router_stack(directory))
        roots = {"ratchet": ROOT, **({"other": given.against.resolve()} if given.against else {})}
        proxies = [
            ProxyUnderTest("stub alone", ports["stub"]),
            ProxyUnderTest("bare ASGI proxy", ports["bare"], bare),
            *(
                ProxyUnderTest(
                    ROUTERS[key],
                    ports[key],
                    stack.enter_context(servers.router(engine, ports[key], name=key, root=root)),
                )
                for key, root in roots.items()
            ),
        ]
        turns = measured(Rounds(directory, given.seconds), proxies, given.rounds)
        paths: dict[str, list[dict[str, float]]] = defaultdict(list)
        for number in range(given.rounds):
            for key, root in list(roots.items())[:: 1 if number % 2 else -1]:
                name_of = ROUTERS[key]
                paths[name_of].append(path_times(servers, engine, ports["timed"], root))
    print(
        f"\n{given.rounds} rounds, {CONNECTIONS} connections for CPU, one for times, load "
        f"{started_at:.1f} at the start, {os.getloadavg()[0]:.1f} at the end"
    )
    print("\n".join(table(turns)))
    print("\n" + "\n".join(path_table(paths)))
    said = list(verdicts(turns))
    for well, text in said:
        print(f"{'reached' if well else 'MISSED'}: {text}")
    return 0 if all(well for well, _ in said) else 1


if __name__ == "__main__":
    sys.exit(main())
