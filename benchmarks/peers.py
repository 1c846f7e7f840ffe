"""Gateways of others that could stand in the router's place, where they are installed here.

They pass requests on and record nothing; the distance to them is what events, judging and Python cost.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.proxies import ROOT

PROGRAMS = (ROOT / ".venv-bench/bin", ROOT / ".venv-bench-vllm-router/bin")
NOT_PACKAGED = {
    "SMG": "smg launch answers 404 to chat completions of a plain worker",
    "Portkey": "the gateway comes by npm alone",
}
"""Peers without a row, and why."""

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
    [[routes.targets]]
    provider = "engine"
    model = "assistant"
    """
)


@dataclass(frozen=True, slots=True)
class Peer:
    """A gateway's program, and the arguments that put it before an engine.

    `arguments` takes a folder for its configuration, its port, a further free one, and host and
    port of the engine.
    """

    name: str
    program: str
    arguments: Callable[[Path, int, int, str, int], list[str]]
    ready: str = "/"

    def path(self) -> str | None:
        """Where the program is; None where it is not installed here."""
        return shutil.which(self.program, path=":".join(map(str, PROGRAMS))) or shutil.which(
            self.program
        )


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


PEERS = {
    "envoy": Peer("Envoy", "envoy", _envoy),
    "vllm-router": Peer("vLLM's router", "vllm-router", _vllm_router, ready="/health"),
    "rolter": Peer("rolter", "rolter", _rolter, ready="/healthz"),
}
