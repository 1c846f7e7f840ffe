"""Environment of a process in which vLLM runs, for serving and for writing a training's answers."""

# pyright: strict
from __future__ import annotations


def vllm_environment(*, from_folder: bool, cpu: bool, kv_cache_gib: int) -> dict[str, str]:
    """What vLLM needs to be told by its environment.

    Args:
        from_folder: The base is a folder, so no hub is asked.
        cpu: There is no GPU.
        kv_cache_gib: Of the cache of keys and values, on a CPU.

    """
    wanted = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}
    if from_folder:
        wanted["HF_HUB_OFFLINE"] = "1"
    if cpu:
        wanted["VLLM_CPU_KVCACHE_SPACE"] = str(kv_cache_gib)
        # vLLM compiles nothing of the model on CPU, but its first request for log-probabilities
        # would wait some 20 s for a compiler.
        wanted["TORCH_COMPILE_DISABLE"] = "1"
        # Without this vLLM puts its own executor in place of `uni`. It concerns only where the
        # model runs; a server's engine stays a process beside the API.
        wanted["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return wanted
