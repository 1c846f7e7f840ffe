"""How vLLM is started: its command line and environment for the service's settings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from services.inference.drain_middleware import DrainMiddleware
from services.inference.settings import InferenceSettings
from shared.observability.trace_export import ENDPOINTS, PROTOCOL, traces_url
from shared.vllm_environment import vllm_environment

ENGINE_SERVICE = "ratchet-engine"
"""What the engine's spans call it, unless OTEL_SERVICE_NAME names both."""


def engine_command(settings: InferenceSettings, traces: str = "") -> list[str]:
    """The command line of vLLM for these settings; `traces` is where its spans are posted."""
    host, port = settings.engine_address
    command = [
        str(settings.engine_python),
        *("-m", "vllm.entrypoints.openai.api_server"),
        *("--model", settings.base_model),
        *("--host", settings.engine_bind or host, "--port", str(port)),
        *("--dtype", settings.dtype),
        "--enable-lora",
        # More slots than ever hold an adapter: on CPU, vLLM's "no adapter" is index -1, which
        # Python reads as the last slot, and the base would answer like whatever lies there. While a
        # drained version still waits to be unloaded, a new one may be in already.
        *("--max-loras", str(2 * settings.max_adapters)),
        *("--max-lora-rank", str(settings.max_adapter_rank)),
        *("--max-model-len", str(settings.max_context)),
        *("--scheduling-policy", "priority"),
        # A line a request would hide why an engine ended; the router counts and logs requests.
        "--disable-uvicorn-access-log",
        *("--middleware", f"{DrainMiddleware.__module__}.{DrainMiddleware.__name__}"),
    ]
    revision = settings.revision_of(settings.base_model)
    if revision and not Path(settings.base_model).is_dir():
        command += ["--revision", revision, "--tokenizer-revision", revision]
    if settings.tool_parser:
        command += ["--enable-auto-tool-choice", "--tool-call-parser", settings.tool_parser]
    if settings.engine_profile == "cpu":
        # A worker process of its own would spin on shared memory between two steps, and yield to
        # nobody: one whole core for two requests a second, and a trainer beside it starves.
        command += ["--distributed-executor-backend", "uni"]
    else:
        command += ["--gpu-memory-utilization", str(settings.gpu_memory_ratio)]
        command += ["--tensor-parallel-size", str(settings.tensor_parallel)]
    if traces:
        command += ["--otlp-traces-endpoint", traces]
    return command + shlex.split(settings.engine_options)


def engine_environment(
    settings: InferenceSettings, environment: Mapping[str, str]
) -> dict[str, str]:
    """Environment of the engine: the service's own, plus what vLLM needs where it is unset.

    A base model that is a folder is served without asking a hub; a hub id may be fetched from it.
    """
    cpu = settings.engine_profile == "cpu"
    wanted = vllm_environment(
        from_folder=Path(settings.base_model).is_dir(), cpu=cpu, kv_cache_gib=settings.kv_cache_gib
    )
    wanted["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
    if key := settings.engine_key():
        wanted["VLLM_API_KEY"] = key
    if cpu and settings.engine_threads:
        wanted["OMP_NUM_THREADS"] = str(settings.engine_threads)
        wanted["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    if traces_url(environment):
        # vLLM's own default is gRPC; the sampler's variables are the SDK's, which it uses.
        wanted["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = PROTOCOL
        wanted["OTEL_SERVICE_NAME"] = ENGINE_SERVICE
    elif any(environment.get(name) for name in ENDPOINTS):
        # vLLM knows no OTEL_TRACES_EXPORTER, and its core exports wherever an endpoint is set.
        return wanted | dict(environment) | {"OTEL_SDK_DISABLED": "true"}
    return wanted | dict(environment)
