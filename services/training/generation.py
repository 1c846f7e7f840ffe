"""Settings of generation: what writes answers for a training and its evaluation."""

# pyright: strict
from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from shared.contracts.recipes import GenerationName


class GenerationSettings(BaseModel):
    """What writes answers, and how much of a machine vLLM may take beside the trainer."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    engine: GenerationName = Field(
        default="transformers",
        description="of evaluations, and of trainings whose recipe has no `generation`; auto: vllm "
        "where a GPU and vLLM are",
    )
    gpu_memory_share: float = Field(
        default=0.3, gt=0, le=0.95, description="of a GPU's memory, weights included; vLLM's part"
    )
    kv_cache_gib: int = Field(default=1, ge=1, le=1024, description="where there is no GPU")
    start_s: float = Field(
        default=600.0, gt=0, le=86_400, description="longest start of vLLM, weights included"
    )
