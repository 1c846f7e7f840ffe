"""What the router costs, with everything on, beside what else could stand in its place.

    python -m benchmarks.router [--seconds 6] [--connections 32] [--without litellm]

One run, one upstream (`benchmarks.stub_engine`), the same requests for all. The proxy under test has
core 0 to itself; the stub, the load generator (wrk), Kafka and Redis share core 1.

- *limit*: the stub without a proxy: what the load generator and the upstream can do at all;
- *nginx*: one worker, passes bytes on, knows nothing of them;
- *bare ASGI*: uvicorn and one aiohttp session as the router has them, and nothing else;
- *ratchet*: `python -m services.router` in a rollout at 20 %: assignment, redaction, metrics, one
  event a request through the spool to a real Kafka; counted there afterwards;
- *LiteLLM*: its proxy, one worker, no database, from `.venv-bench`;
- Envoy, vLLM's router, SMG, rolter, Portkey (`benchmarks.peers`): where they are installed; what is not
  is said, and never left out in silence.

nginx, Envoy, rolter, Portkey and LiteLLM split traffic 80 to 20 between two targets, both of them the stub.
vLLM's router and SMG have no weights, and one target.

Two rates: by the clock, and a second of the proxy's own CPU time (its workers included), which is
what the proxy does on one core that it need not share; they agree on a quiet machine, and where they
do not, other programs were on the core. The goals are judged by the second. `+p50` is the median at
one connection less that of the stub alone, always by the clock.

Two more tables are of the stub alone, the bare proxy and the router: streams
(`benchmarks.router_streams`), and resident memory before the first request, under load, and after it
all.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.peers import GOAL_TIMES, PEERS, Peer
from benchmarks.proxies import (
    OTHER_CORE,
    PROXY_CORE,
    ROOT,
    await_answer,
    process,
    resident_mib,
)
from benchmarks.proxy_load import LOAD, P99_LIMITS_MS, Load, Row, chat_load, measure
from benchmarks.router_stack import RouterStack, bare_proxy, router_stack
from benchmarks.router_streams import (
    PACE_S,
    TOKENS,
    StreamRow,
    measure_streams,
    stream_table,
    stream_verdicts,
)
from benchmarks.stub_engine import TEXT
from deploy.local.ports import free_ports

GOAL_RPS = 4_000
GOAL_SHARE_OF_BARE = 0.6
GOAL_TIMES_LITELLM = 30
GOAL_ADDED_P50_MS = 0.6
SHIP_TIMEOUT_S = 60.0
LITELLM = ROOT / ".venv-bench/bin/litellm"

_NGINX = """
worker_processes 1; daemon off; pid {dir}/nginx.pid; error_log {dir}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;
  uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s; keepalive_requests 1000000000;
  upstream engine {{ server {upstream} weight=80; server {upstream} weight=20; keepalive 128; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""


class Run:
    """The stub, the servers, and one proxy after the other."""

    def __init__(self, directory: Path, load: Load, ports: dict[str, int]) -> None:
        self.directory = directory
        self.load = load
        self.ports = ports
        self.stub = f"http://127.0.0.1:{ports['stub']}"
        self.streams: list[StreamRow] = []
        self.after_mib: dict[str, float] = {}
        """Resident memory after all of a proxy's loads."""

    def url(self, name: str) -> str:
        """Base URL of a port."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def limit(self) -> Row:
        """The stub alone."""
        row = measure("limit: the stub alone", self.stub, self.load, None)
        self.streams.append(measure_streams(row.name, self.stub))
        return row

    def nginx(self) -> Row:
        """Nginx with one worker."""
        config = self.directory / "nginx.conf"
        config.write_text(
            _NGINX.format(dir=self.directory, upstream=self.stub[7:], port=self.ports["nginx"])
        )
        return self._proxy("nginx", ["nginx", "-c", str(config), "-p", str(self.directory)], "/")

    def bare(self) -> Row:
        """The router's libraries and nothing else."""
        command = bare_proxy(self.directory, self.ports["bare"])
        return self._proxy(
            "bare", command, "/", {"UPSTREAM": self.stub}, name="bare ASGI proxy", streams=True
        )

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
                        "weight": weight,
                    },
                }
                for weight in (80, 20)
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

    def peer(self, key: str, peer: Peer, command: Sequence[str]) -> Row:
        """A gateway of others."""
        host, upstream = self.stub[7:].split(":")
        arguments = peer.arguments(
            self.directory, self.ports[key], self.ports["other"], host, int(upstream)
        )
        headers = peer.headers(host, int(upstream))
        script = self.directory / f"{key}.lua"
        script.write_text(chat_load(headers))
        load = replace(self.load, script=script, headers=headers)
        return self._proxy(key, [*command, *arguments], peer.ready, name=peer.name, load=load)

    def _proxy(
        self,
        key: str,
        command: Sequence[str],
        ready: str,
        env: dict[str, str] | None = None,
        name: str = "",
        *,
        streams: bool = False,
        load: Load | None = None,
    ) -> Row:
        log = self.directory / f"{key}.log"
        with process(command, log, PROXY_CORE, env) as running:
            await_answer(self.url(key) + ready, running, log)
            row = measure(name or key, self.url(key), load or self.load, running.pid)
            if streams:
                self.streams.append(measure_streams(row.name, self.url(key)))
            self.after_mib[row.name] = resident_mib(running.pid)
            return row

    def ratchet(self) -> Row:
        """The router, then a look at what it left: every request counted, every event in Kafka."""
        with (
            router_stack(self.directory) as stack,
            stack.router(self.stub, self.ports["ratchet"]) as running,
        ):
            row = measure("ratchet router", self.url("ratchet"), self.load, running.pid)
            self.streams.append(measure_streams(row.name, self.url("ratchet")))
            self._check(stack)
            self.after_mib[row.name] = resident_mib(running.pid)
            return row

    def _check(self, stack: RouterStack) -> None:
        """Refuse the figure if anything that should be on was off."""
        deadline = time.monotonic() + SHIP_TIMEOUT_S
        while (figures := self._figures())["ratchet_router_spool_bytes"] > 0:
            assert time.monotonic() < deadline, "the spool was not shipped in time"
            time.sleep(0.2)
        counted = figures["ratchet_router_requests_total"]
        arms = {arm for arm in ("stable", "candidate") if figures.get(f"arm {arm}")}
        stored = stack.interactions()
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


def table(rows: Sequence[Row], alone_ms: float) -> str:
    """The rows, aligned."""
    lines = [
        f"{'':22}{'requests/s':>12}{'requests':>14}{'p99 ms':>9}{'p50 ms':>9}{'+p50 ms':>9}"
        f"{'requests/s by clock at p99 ≤':>30}",
        f"{'':22}{'by clock':>12}{'by CPU second':>14}{'by clock':>9}{'by clock':>9}{'by clock':>9}"
        + "".join(f"{f'{limit} ms':>10}" for limit in P99_LIMITS_MS),
        f"{'connections':22}{'many':>12}{'many':>14}{'many':>9}{'one':>9}{'one':>9}",
    ]
    for row in rows:
        core = f"{row.core_rps:14,.0f}" if row.core_rps is not None else f"{'–':>14}"
        lines.append(
            f"{row.name:22}{row.rps:12,.0f}{core}{row.p99_ms:9.1f}{row.alone_p50_ms:9.3f}"
            f"{row.alone_p50_ms - alone_ms:9.3f}"
            + "".join(f"{row.best_rps(limit):10,.0f}" for limit in P99_LIMITS_MS)
        )
    return "\n".join(lines)


def memory_table(rows: Sequence[Row], after_mib: dict[str, float]) -> str:
    """Resident memory of each proxy in MiB, aligned."""
    lines = [f"{'resident MiB':22}{'idle':>9}{'steady':>9}{'after':>9}"]
    for row in rows:
        if row.name in after_mib:
            after = after_mib[row.name]
            lines.append(f"{row.name:22}{row.idle_mib:9.0f}{row.steady_mib:9.0f}{after:9.0f}")
    return "\n".join(lines)


def distances(rows: dict[str, Row]) -> list[str]:
    """How far ahead the peers in Rust and C++ are, which have no goal and record nothing."""
    ours = rows["ratchet"].core_rps
    assert ours is not None
    found = {
        peer.name: rows[key].core_rps
        for key, peer in PEERS.items()
        if key in rows and not peer.on_node
    }
    return [
        f"{name}: {theirs / ours:.1f} × ours by CPU second"
        for name, theirs in found.items()
        if theirs
    ]


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
    bare = rows["bare"].core_rps if "bare" in rows else None
    if bare is not None:
        share = ours.core_rps / bare
        said.append(
            (
                share >= GOAL_SHARE_OF_BARE,
                f"{share:.0%} of the bare ASGI proxy by CPU second (goal {GOAL_SHARE_OF_BARE:.0%})",
            )
        )
    goals = {"litellm": ("LiteLLM", GOAL_TIMES_LITELLM)} | {
        key: (peer.name, GOAL_TIMES) for key, peer in PEERS.items() if peer.on_node
    }
    for key, (name, goal) in goals.items():
        theirs = rows[key].core_rps if key in rows else None
        if theirs is not None:
            times = ours.core_rps / theirs
            said.append(
                (times >= goal, f"{times:.1f} × {name} by CPU second (goal {goal} ×)"),
            )
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description="the router beside its peers")
    parser.add_argument("--seconds", type=int, default=6)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument(
        "--without", nargs="*", default=[], choices=["nginx", "bare", "litellm", *PEERS]
    )
    given = parser.parse_args()
    if not LITELLM.exists() and "litellm" not in given.without:
        print("LiteLLM is not installed: make bench does it. Left out.")
        given.without.append("litellm")
    commands = {key: peer.command() for key, peer in PEERS.items() if key not in given.without}
    for key, command in commands.items():
        if command is None:
            print(f"{PEERS[key].name} is not installed: make bench does it. Left out.")
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing; make setup installs it")
    os.sched_setaffinity(0, {OTHER_CORE})
    started_at = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="ratchet-bench-") as name:
        directory = Path(name)
        script = directory / "chat.lua"
        script.write_text(LOAD)
        ports = free_ports(["stub", "nginx", "bare", "ratchet", "litellm", "other", *PEERS])
        run = Run(directory, Load(script, given.seconds, given.connections), ports)
        stub = [sys.executable, "-m", "benchmarks.stub_engine", "--port", str(ports["stub"]),
                "--pace", str(PACE_S), "--tokens", str(TOKENS)]  # fmt: skip
        with process(stub, directory / "stub.log", OTHER_CORE) as running:
            await_answer(run.stub, running, directory / "stub.log")
            steps: dict[str, Callable[[], Row]] = {
                "limit": run.limit,
                "nginx": run.nginx,
                "bare": run.bare,
                "ratchet": run.ratchet,
                "litellm": run.litellm,
                **{
                    key: partial(run.peer, key, PEERS[key], command)
                    for key, command in commands.items()
                    if command is not None
                },
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
    print(f"\n{stream_table(run.streams)}")
    print(f"\n{memory_table(list(rows.values()), run.after_mib)}")
    print("\n" + "\n".join(distances(rows)))
    said = [*verdicts(rows, alone_ms), *stream_verdicts(run.streams, run.streams[-1])]
    for well, text in said:
        print(f"{'reached' if well else 'MISSED'}: {text}")
    return 0 if all(well for well, _ in said) else 1


if __name__ == "__main__":
    sys.exit(main())
