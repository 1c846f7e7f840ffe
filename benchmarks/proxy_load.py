"""Load on a proxy by wrk: what it answers in a second, how long one takes, what it costs."""

from __future__ import annotations

import json
import re
import subprocess
import textwrap
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.proxies import START_TIMEOUT_S, cpu_seconds, resident_mib

USERS = 5_000
P99_LIMITS_MS = (1, 5, 10)
SWEEP = (1, 2, 4, 8, 16, 32, 64)
"""Connections by which the requests a second at a bounded p99 are found, for SWEEP_S seconds each."""
SWEEP_S = 1
PATH = "/v1/chat/completions"

REPORT = r"""
done = function(summary, latency, requests)
  io.write(string.format('RESULT {"requests":%d,"seconds":%f,"p50_ms":%f,"p99_ms":%f,'
    .. '"bad":%d}\n', summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, summary.errors.status + summary.errors.connect
    + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
"""
"""What a script of wrk prints at its end, for `wrk` to read."""

_CHAT = textwrap.dedent(
    """
    local n = 0
    request = function()
      n = n + 1
      return wrk.format("POST", "%(path)s", {%(headers)s},
        '{"model":"assistant","user":"user-' .. (n %% %(users)d) .. '","messages":['
        .. '{"role":"system","content":"You are a helpful support assistant."},'
        .. '{"role":"user","content":"Where is my parcel? I ordered it last week."}],'
        .. '"max_tokens":64,"temperature":0.7}')
    end
    """
)


def chat_load(headers: Mapping[str, str]) -> str:
    """A script of wrk that sends chat completions with these headers beside the content type."""
    fields = {"content-type": "application/json", **headers}
    # A JSON string of ASCII is a Lua string too.
    table = ", ".join(f"[{json.dumps(name)}] = {json.dumps(fields[name])}" for name in fields)
    return _CHAT % {"path": PATH, "users": USERS, "headers": table} + REPORT


LOAD = chat_load({})


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. Times are in milliseconds, `core_rps` is requests a core-second."""

    name: str
    rps: float
    p99_ms: float
    alone_p50_ms: float
    core_rps: float | None
    idle_mib: float = 0.0
    """Resident memory before the first request; 0 where none was read."""
    steady_mib: float = 0.0
    """At the end of the load."""
    sweep: tuple[tuple[float, float], ...] = ()
    """Requests a second and their p99, by one number of connections after the other."""

    def best_rps(self, p99_ms: float) -> float:
        """The most requests a second, of those tried, with a p99 of at most that; 0 if none had."""
        return max((rps for rps, p99 in self.sweep if p99 <= p99_ms), default=0.0)


@dataclass(frozen=True, slots=True)
class Load:
    """How hard and how long."""

    script: Path
    seconds: int
    connections: int
    headers: Mapping[str, str] = field(default_factory=dict)
    """What the script sends beside the content type; the first request needs them too."""


def measure(name: str, url: str, load: Load, pid: int | None) -> Row:
    """Warm up, then many connections, then one, then more and more of them."""
    idle_mib = resident_mib(pid) if pid else 0.0
    first_answer(url, load.headers)
    wrk(url, load, 1, load.connections)
    before = cpu_seconds(pid) if pid else 0.0
    busy = wrk(url, load, load.seconds, load.connections)
    used = cpu_seconds(pid) - before if pid else 0.0
    steady_mib = resident_mib(pid) if pid else 0.0
    alone = wrk(url, load, max(2, load.seconds // 2), 1)
    sweep = [wrk(url, load, SWEEP_S, connections, silent=True) for connections in SWEEP]
    return Row(
        name=name,
        rps=busy["requests"] / busy["seconds"],
        p99_ms=busy["p99_ms"],
        alone_p50_ms=alone["p50_ms"],
        core_rps=busy["requests"] / used if pid else None,
        idle_mib=idle_mib,
        steady_mib=steady_mib,
        sweep=tuple((one["requests"] / one["seconds"], one["p99_ms"]) for one in sweep),
    )


def first_answer(url: str, headers: Mapping[str, str] | None = None) -> None:
    """One request, which may take its time: some proxies load half of themselves with it."""
    body = {"model": "assistant", "messages": [{"role": "user", "content": "hello"}]}
    fields = {"content-type": "application/json", **(headers or {})}
    request = urllib.request.Request(url + PATH, json.dumps(body).encode(), fields)
    with urllib.request.urlopen(request, timeout=START_TIMEOUT_S):
        pass


def wrk(
    url: str, load: Load, seconds: int, connections: int, *, silent: bool = False
) -> dict[str, float]:
    """One run of the load generator; every answer must be a 200, and there must be one unless `silent`.

    A slow proxy may answer none of many connections within a second: its rate is 0 then.
    """
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--timeout", "10", "-s",
               str(load.script), url]  # fmt: skip
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"^RESULT (.*)$", output, re.MULTILINE)
    assert found is not None, output
    result = json.loads(found[1])
    assert silent or result["requests"] > 0, f"{url}: not one answer in {seconds} s\n{output}"
    assert result["bad"] == 0, f"{url}: {result['bad']} requests failed\n{output}"
    return result
