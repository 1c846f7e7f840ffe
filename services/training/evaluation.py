"""Settings of the evaluation: how both arms' answers are made and compared."""

# pyright: strict
from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class EvaluationSettings(BaseModel):
    """How the arms' answers are made and compared."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    prompts: int = Field(default=200, ge=1, le=10_000)
    max_new_tokens: int = Field(default=96, ge=1, le=8192)
    temperature: float = Field(default=0.8, ge=0, le=2)
    batch_size: int = Field(default=32, ge=1, le=1024)
    cases: int = Field(default=500, ge=0, le=10_000, description="newest failure cases asked")
    samples: int = Field(default=8, ge=0, le=100, description="answers shown in the report")
