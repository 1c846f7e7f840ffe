"""Settings of the evaluation: how both arms' answers are made and compared."""

# pyright: strict
from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shared.ai_judge import CRITERIA

WEIGHTS = {
    "win_rate": 4.0,
    "rouge_l": 1.0,
    "safety": 1.0,
    "factuality": 1.0,
    "f1": 1.0,
    "stop_share": 1.0,
    "variety": 0.5,
    "coherence": 0.5,
    "sentiment": 0.5,
}
"""Half of the score is what people prefer; the rest keeps a liked model from getting worse."""


class EvaluationSettings(BaseModel):
    """How the arms' answers are made and compared."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    prompts: int = Field(default=200, ge=1, le=10_000)
    max_new_tokens: int = Field(default=96, ge=1, le=8192)
    temperature: float = Field(default=0.8, ge=0, le=2)
    batch_size: int = Field(default=32, ge=1, le=1024)
    cases: int = Field(default=500, ge=0, le=10_000, description="newest failure cases asked")
    samples: int = Field(default=8, ge=0, le=100, description="answers shown in the report")
    questions: str = Field(
        default="",
        max_length=2000,
        description="YAML of further facts, labels, tool requests and red-team probes",
    )
    question_tokens: int = Field(default=32, ge=1, le=8192, description="of an answer to those")
    sentiment_model: str = Field(
        default="", max_length=2000, description="hub id or path of a classifier; empty: a lexicon"
    )
    weights: dict[str, Annotated[float, Field(ge=0, le=1000)]] = Field(
        default=WEIGHTS, max_length=64, description="of measures in [0, 1] in the one score"
    )
    judge_url: str = Field(
        default="",
        max_length=2000,
        description="OpenAI-compatible endpoint of an AI judge, asked beside the reward model; empty: none",
    )
    judge_model: str = Field(default="", max_length=200, description="the AI judge's name there")
    judge_criteria: str = Field(
        default=CRITERIA, max_length=2000, description="what the AI judge holds to be better"
    )
    lm_eval_tasks: tuple[str, ...] = Field(
        default=(), max_length=64, description="of lm-evaluation-harness; the gate holds each"
    )
    lm_eval_path: str = Field(default="", max_length=2000, description="folder of own task files")
    lm_eval_limit: int = Field(default=200, ge=1, le=100_000, description="items of a task")
    lm_eval_python: str = Field(
        default="",
        max_length=2000,
        description="interpreter that has lm_eval; empty: the trainer's",
    )
    lm_eval_timeout_s: float = Field(default=3600.0, gt=0, le=86_400, description="of one arm")

    @model_validator(mode="after")
    def _judge_has_a_name(self) -> EvaluationSettings:
        if self.judge_url and not self.judge_model:
            raise ValueError("judge_model: required beside judge_url; give the judge's name there")
        return self
