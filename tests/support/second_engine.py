"""A second engine with vLLM and its agent beside a stack's first, known to router and rollout."""

from __future__ import annotations

from typing import Any


def second_engine(
    name: str, about: str, *, ready: str = "/readyz", env: dict[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Processes for a `Stack`: `inference-<name>`, and the addresses of both for who asks them.

    `ready` is the path that says so, `env` what the second has beside its addresses.
    """
    service, engine = f"inference-{name}", f"vllm-{name}"
    return {
        service: {
            "about": about,
            "module": "services.inference",
            "ports": {service: 8092, engine: 8093},
            "env": {
                "RATCHET_INFERENCE_PORT": f"${{port.{service}}}",
                "RATCHET_INFERENCE_ENGINE_URL": f"${{url.{engine}}}",
                "RATCHET_INFERENCE_ENGINE_PYTHON": "${root}/.venv-ml/bin/python",
                "RATCHET_INFERENCE_ENGINE_DRAIN_S": "20",
                **(env or {}),
            },
            "after": ["topics", "redis"],
            "ready": {"http": f"${{url.{service}}}{ready}", "timeout_s": 600},
            "stop_s": 60,
        },
        "router": {"env": {"RATCHET_ROUTER_ENGINES": f"${{url.vllm}},${{url.{engine}}}"}},
        "rollout": {"env": {"RATCHET_ROLLOUT_AGENTS": f"${{url.inference}},${{url.{service}}}"}},
    }
