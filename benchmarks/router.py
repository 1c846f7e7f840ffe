"""What the router costs, with everything on, beside what else could stand in its place.

    python -m benchmarks.router [--seconds 6] [--connections 32] [--without litellm]

One run, one upstream (`benchmarks.stub_engine`), the same requests for all. The proxy under test has
core 0 to itself; the stub, the load generator (wrk), Kafka and Redis share core 1.

- *limit*: the stub without a proxy: what the load generator and the upstream can do at all;
- *nginx*: one worker, passes bytes on, knows nothing of them;
- *bare ASGI*: uvicorn and one aiohttp session as the router has them, and nothing else;
- *ratchet*: `python -m services.router` in a rollout at 20 %: assignment, redaction, metrics, one
  event a request through the spool to a real Kafka; counted there afterwards;
- *LiteLLM*: its proxy, one worker, no database, from `.venv-bench`.

Two rates: by the clock, and a second of the proxy's own CPU time (its workers included), which is
what the proxy does on one core that it need not share; they agree on a quiet machine, and where they
do not, other programs were on the core. The goals are judged by the second. `+p50` is the median at
one connection less that of the stub alone, always by the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from redis.asyncio import Redis

from benchmarks.stub_engine import TEXT
from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from shared.contracts.events.rollouts import Phase
from shared.contracts.topics import INTERACTIONS
from shared.kafka.log import read_to_end
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.kafka.topics import apply_topics
from shared.registry.routing import RoutingState
from shared.registry.view import RoutingView

GOAL_RPS = 4_000
GOAL_TIMES_LITELLM = 30
GOAL_ADDED_P50_MS = 0.6
PROXY_CORE, OTHER_CORE = 0, 1
START_TIMEOUT_S = 180.0
SHIP_TIMEOUT_S = 60.0
USERS = 5_000
ROOT = Path(__file__).parents[1]
LITELLM = ROOT / ".venv-bench/bin/litellm"
PATH = "/v1/chat/completions"

_LOAD = textwrap.dedent(
    """
    local n = 0
    request = function()
      n = n + 1
      return wrk.format("POST", "%(path)s", {["content-type"] = "application/json"},
        '{"model":"assistant","user":"user-' .. (n %% %(users)d) .. '","messages":['
        .. '{"role":"system","content":"You are a helpful support assistant."},'
        .. '{"role":"user","content":"Where is my parcel? I ordered it last week."}],'
        .. '"max_tokens":64,"temperature":0.7}')
    end
    done = function(summary, latency, requests)
      io.write(string.format('RESULT {"requests":%%d,"seconds":%%f,"p50_ms":%%f,"p99_ms":%%f,'
        .. '"bad":%%d}\\n', summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
        latency:percentile(99) / 1e3, summary.errors.status + summary.errors.connect
        + summary.errors.read + summary.errors.write + summary.errors.timeout))
    end
    """
) % {"path": PATH, "users": USERS}

_BARE = textwrap.dedent(
    """
    import aiohttp, os
    session = None

    async def app(scope, receive, send):
        global session
        if session is None:
            session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0),
                                            auto_decompress=False)
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        async with session.post(os.environ["UPSTREAM"] + scope["path"], data=body,
                                headers={"content-type": "application/json"}) as response:
            answer = await response.read()
        headers = [(b"content-type", b"application/json"),
                   (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})
    """
)

_NGINX = """
worker_processes 1; daemon off; pid {dir}/nginx.pid; error_log {dir}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;
  uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s; keepalive_requests 1000000000;
  upstream engine {{ server {upstream}; keepalive 128; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. Times are in milliseconds, `core_rps` is requests a core-second."""

    name: str
    rps: float
    p99_ms: float
    alone_p50_ms: float
    core_rps: float | None


@dataclass(frozen=True, slots=True)
class Load:
    """How hard and how long."""

    script: Path
    seconds: int
    connections: int


def measure(name: str, url: str, load: Load, pid: int | None) -> Row:
    """Warm up, then many connections, then one."""
    first_answer(url)
    wrk(url, load, 1, load.connections)
    before = cpu_seconds(pid) if pid else 0.0
    busy = wrk(url, load, load.seconds, load.connections)
    used = cpu_seconds(pid) - before if pid else 0.0
    alone = wrk(url, load, max(2, load.seconds // 2), 1)
    return Row(
        name=name,
        rps=busy["requests"] / busy["seconds"],
        p99_ms=busy["p99_ms"],
        alone_p50_ms=alone["p50_ms"],
        core_rps=busy["requests"] / used if pid else None,
    )


def first_answer(url: str) -> None:
    """One request, which may take its time: some proxies load half of themselves with it."""
    body = {"model": "assistant", "messages": [{"role": "user", "content": "hello"}]}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url + PATH, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=START_TIMEOUT_S):
        pass


def wrk(url: str, load: Load, seconds: int, connections: int) -> dict[str, float]:
    """One run of the load generator; every answer must be a 200."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--timeout", "10", "-s",
               str(load.script), url]  # fmt: skip
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"^RESULT (.*)$", output, re.MULTILINE)
    assert found is not None, output
    result = json.loads(found[1])
    assert result["requests"] > 0, f"{url}: not one answer in {seconds} s\n{output}"
    assert result["bad"] == 0, f"{url}: {result['bad']} requests failed\n{output}"
    return result


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and its children that live."""
    ticks = 0
    for each in [pid, *children(pid)]:
        fields = Path(f"/proc/{each}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """All descendants of a process."""
    direct = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [one for child in direct for one in (int(child), *children(int(child)))]


@contextmanager
def process(
    command: Sequence[str], log: Path, core: int, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A program on one core, ended on leaving."""
    with log.open("wb") as output:
        started = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            cwd=ROOT,
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


class Run:
    """The stub, the servers, and one proxy after the other."""

    def __init__(self, directory: Path, load: Load, ports: dict[str, int]) -> None:
        self.directory = directory
        self.load = load
        self.ports = ports
        self.stub = f"http://127.0.0.1:{ports['stub']}"

    def url(self, name: str) -> str:
        """Base URL of a port."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def limit(self) -> Row:
        """The stub alone."""
        return measure("limit: the stub alone", self.stub, self.load, None)

    def nginx(self) -> Row:
        """Nginx with one worker."""
        config = self.directory / "nginx.conf"
        config.write_text(
            _NGINX.format(dir=self.directory, upstream=self.stub[7:], port=self.ports["nginx"])
        )
        return self._proxy("nginx", ["nginx", "-c", str(config), "-p", str(self.directory)], "/")

    def bare(self) -> Row:
        """The router's libraries and nothing else."""
        (self.directory / "bare_proxy.py").write_text(_BARE)
        command = [sys.executable, "-m", "uvicorn", "bare_proxy:app", "--app-dir",
                   str(self.directory), "--port", str(self.ports["bare"]), "--no-access-log",
                   "--log-level", "warning", "--lifespan", "off"]  # fmt: skip
        return self._proxy("bare", command, "/", {"UPSTREAM": self.stub}, name="bare ASGI proxy")

    def litellm(self) -> Row:
        """LiteLLM's proxy with one worker."""
        config = self.directory / "litellm.json"
        settings = {
            "model_list": [
                {
                    "model_name": "assistant",
                    "litellm_params": {
                        "model": "openai/assistant",
                        "api_base": f"{self.stub}/v1",
                        "api_key": "none",
                    },
                }
            ],
            "litellm_settings": {"telemetry": False, "set_verbose": False},
        }
        config.write_text(json.dumps(settings))
        command = [str(LITELLM), "--config", str(config), "--host", "127.0.0.1", "--port",
                   str(self.ports["litellm"]), "--num_workers", "1"]  # fmt: skip
        env = {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            # No key, as the router in its local profile asks for none.
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        }
        return self._proxy("litellm", command, "/health/liveliness", env, name="LiteLLM proxy")

    def _proxy(
        self,
        key: str,
        command: Sequence[str],
        ready: str,
        env: dict[str, str] | None = None,
        name: str = "",
    ) -> Row:
        log = self.directory / f"{key}.log"
        with process(command, log, PROXY_CORE, env) as running:
            await_answer(self.url(key) + ready, running, log)
            return measure(name or key, self.url(key), self.load, running.pid)

    def ratchet(self) -> Row:
        """The router, then a look at what it left: every request counted, every event in Kafka."""
        with Stack(
            self.directory / "stack", services=[], ports="free", say=lambda _: None
        ) as stack:
            stack.start("kafka")
            stack.start("redis")
            bootstrap = stack.address("kafka")
            redis_url = f"redis://{stack.address('redis')}/0"
            asyncio.run(
                apply_topics(
                    KafkaConnection(bootstrap), tenants=("default",), partitions=4, replication=1
                )
            )
            asyncio.run(open_rollout(redis_url))
            env = {
                "RATCHET_KAFKA_BOOTSTRAP": bootstrap,
                "RATCHET_REDIS_URL": redis_url,
                "RATCHET_DATA_DIR": str(self.directory / "data"),
                "RATCHET_ROUTER_PORT": str(self.ports["ratchet"]),
                "RATCHET_ROUTER_ENGINES": self.stub,
                "RATCHET_ROUTER_STALE_AFTER_S": "600",
            }
            log = self.directory / "ratchet.log"
            command = [sys.executable, "-m", "services.router"]
            with process(command, log, PROXY_CORE, env) as running:
                await_answer(self.url("ratchet") + "/readyz", running, log)
                row = measure("ratchet router", self.url("ratchet"), self.load, running.pid)
                self._check(bootstrap)
            return row

    def _check(self, bootstrap: str) -> None:
        """Refuse the figure if anything that should be on was off."""
        deadline = time.monotonic() + SHIP_TIMEOUT_S
        while (figures := self._figures())["ratchet_router_spool_bytes"] > 0:
            assert time.monotonic() < deadline, "the spool was not shipped in time"
            time.sleep(0.2)
        counted = figures["ratchet_router_requests_total"]
        arms = {arm for arm in ("stable", "candidate") if figures.get(f"arm {arm}")}
        stored = asyncio.run(count_interactions(bootstrap))
        assert arms == {"stable", "candidate"}, f"the split did not run: only {arms}"
        assert figures["ratchet_router_events_lost_total"] == 0, "events were lost"
        assert stored >= counted > 0, f"{counted} requests counted, {stored} events in Kafka"
        print(f"ratchet: {counted:.0f} requests counted, {stored} events in Kafka, none lost")

    def _figures(self) -> dict[str, float]:
        with urllib.request.urlopen(self.url("ratchet") + "/metrics", timeout=5) as answer:
            text = answer.read().decode()
        figures: dict[str, float] = {}
        for line in text.splitlines():
            if line.startswith("ratchet_router_"):
                series, value = line.rsplit(" ", 1)
                name = series.split("{")[0]
                figures[name] = figures.get(name, 0.0) + float(value)
                for arm in re.findall(r'arm="(\w+)"', series if "requests_total" in name else ""):
                    figures[f"arm {arm}"] = figures.get(f"arm {arm}", 0.0) + float(value)
        return figures


async def open_rollout(redis_url: str) -> None:
    """A rollout at 20 %."""
    async with Redis.from_url(redis_url) as redis:
        await RoutingView(redis).put(
            RoutingState(
                model="assistant",
                stable="assistant-v1.0",
                candidate="assistant-v1.1",
                rollout="benchmark",
                phase=Phase.progressing,
                weight=2_000,
                token=0,
                seq=0,
                at=datetime.now(UTC),
            )
        )


async def count_interactions(bootstrap: str) -> int:
    """How many interaction events Kafka holds."""
    log = KafkaLog(KafkaConnection(bootstrap), source="/ratchet/benchmark")
    return len(await read_to_end(log, INTERACTIONS, timeout_s=SHIP_TIMEOUT_S))


def table(rows: Sequence[Row], alone_ms: float) -> str:
    """The rows, aligned."""
    lines = [
        f"{'':22}{'requests/s':>12}{'requests':>14}{'p99 ms':>9}{'p50 ms':>9}{'+p50 ms':>9}",
        f"{'':22}{'by clock':>12}{'by CPU second':>14}{'by clock':>9}{'by clock':>9}{'by clock':>9}",
        f"{'connections':22}{'many':>12}{'many':>14}{'many':>9}{'one':>9}{'one':>9}",
    ]
    for row in rows:
        core = f"{row.core_rps:14,.0f}" if row.core_rps is not None else f"{'–':>14}"
        lines.append(
            f"{row.name:22}{row.rps:12,.0f}{core}{row.p99_ms:9.1f}{row.alone_p50_ms:9.3f}"
            f"{row.alone_p50_ms - alone_ms:9.3f}"
        )
    return "\n".join(lines)


def verdicts(rows: dict[str, Row], alone_ms: float) -> list[tuple[bool, str]]:
    """Our figures against the goals."""
    ours = rows["ratchet"]
    assert ours.core_rps is not None
    added = ours.alone_p50_ms - alone_ms
    said = [
        (
            ours.core_rps >= GOAL_RPS,
            f"{ours.core_rps:,.0f} requests by CPU second (goal {GOAL_RPS:,}; "
            f"{ours.rps:,.0f}/s by the clock)",
        ),
        (
            added <= GOAL_ADDED_P50_MS,
            f"{added:.2f} ms added by the clock (goal {GOAL_ADDED_P50_MS} ms)",
        ),
    ]
    theirs = rows["litellm"].core_rps if "litellm" in rows else None
    if theirs is not None:
        times = ours.core_rps / theirs
        said.append(
            (
                times >= GOAL_TIMES_LITELLM,
                f"{times:.0f} × LiteLLM by CPU second (goal {GOAL_TIMES_LITELLM} ×)",
            )
        )
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description="the router beside its peers")
    parser.add_argument("--seconds", type=int, default=6)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--without", nargs="*", default=[], choices=["nginx", "bare", "litellm"])
    given = parser.parse_args()
    if not LITELLM.exists() and "litellm" not in given.without:
        print("LiteLLM is not installed: make bench does it. Left out.")
        given.without.append("litellm")
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing; make setup installs it")
    os.sched_setaffinity(0, {OTHER_CORE})
    started_at = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="ratchet-bench-") as name:
        directory = Path(name)
        script = directory / "chat.lua"
        script.write_text(_LOAD)
        ports = free_ports(["stub", "nginx", "bare", "ratchet", "litellm"])
        run = Run(directory, Load(script, given.seconds, given.connections), ports)
        stub = [sys.executable, "-m", "benchmarks.stub_engine", "--port", str(ports["stub"])]
        with process(stub, directory / "stub.log", OTHER_CORE) as running:
            await_answer(run.stub, running, directory / "stub.log")
            steps: dict[str, Callable[[], Row]] = {
                "limit": run.limit,
                "nginx": run.nginx,
                "bare": run.bare,
                "ratchet": run.ratchet,
                "litellm": run.litellm,
            }
            rows: dict[str, Row] = {}
            for key, step in steps.items():
                if key not in given.without:
                    print(f"measuring {key} …", flush=True)
                    rows[key] = step()
    alone_ms = rows["limit"].alone_p50_ms
    print(
        f"\nrouter: {given.connections} connections, {len(TEXT)} characters an answer, load {started_at:.1f} at the start"
    )
    print(table(list(rows.values()), alone_ms))
    said = verdicts(rows, alone_ms)
    for well, text in said:
        print(f"{'reached' if well else 'MISSED'}: {text}")
    return 0 if all(well for well, _ in said) else 1


if __name__ == "__main__":
    sys.exit(main())
