"""Hyperparameters of each training method, with their bounds.

Defaults suit LoRA on a small model; a job's own values win over the service's, and those over
the defaults. What a version was trained with is kept whole in its record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.training.errors import InvalidJob

P = TypeVar("P", bound=BaseModel)
LossTerm = Literal["sigmoid", "robust", "ipo", "hinge", "sigmoid_norm", "sft"]


class TrainerHyperparameters(BaseModel):
    """What every trainer takes. An unknown name is an error, so a typing mistake is not ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    learning_rate: float = Field(gt=0, le=0.1)
    epochs: float = Field(gt=0, le=100)
    batch_size: int = Field(default=8, ge=1, le=1024, description="rows a step and device")
    accumulation: int = Field(default=1, ge=1, le=1024, description="steps a weight update")
    max_length: int = Field(default=512, ge=16, le=131_072, description="tokens of a row")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of steps of rising rate")
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0, le=100)


class LoraHyperparameters(BaseModel):
    """Shape of a new adapter. DPO continues its parent's and keeps the parent's shape."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rank: int = Field(default=16, ge=1, le=256)
    alpha: int = Field(default=32, ge=1, le=1024)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class SftHyperparameters(TrainerHyperparameters):
    """Supervised fine-tuning on demonstrations."""

    learning_rate: float = Field(default=1e-3, gt=0, le=0.1)
    epochs: float = Field(default=2.0, gt=0, le=100)
    batch_size: int = Field(default=16, ge=1, le=1024)
    lora: LoraHyperparameters = LoraHyperparameters()


class DpoHyperparameters(TrainerHyperparameters):
    """Direct preference optimisation (Rafailov et al. 2023) with an SFT term on the chosen answer.

    The SFT term keeps the likelihood of chosen answers, their end-of-turn token included, from
    falling: plain DPO may raise the margin while both fall, and then generates past its end of turn.
    """

    learning_rate: float = Field(default=3e-4, gt=0, le=0.1)
    epochs: float = Field(default=3.0, gt=0, le=100)
    beta: float = Field(default=0.1, gt=0, le=10)
    loss: tuple[LossTerm, ...] = ("sigmoid", "sft")
    loss_weights: tuple[float, ...] = (1.0, 0.3)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)

    @model_validator(mode="after")
    def _one_weight_a_term(self) -> DpoHyperparameters:
        if not self.loss or len(self.loss) != len(self.loss_weights):
            raise ValueError("loss_weights: give exactly one weight for each term of loss")
        return self


class RewardHyperparameters(TrainerHyperparameters):
    """Bradley-Terry reward model: LoRA and a score head on the base, the evaluation's judge."""

    learning_rate: float = Field(default=1e-3, gt=0, le=0.1)
    epochs: float = Field(default=4.0, gt=0, le=100)
    center_rewards: float = Field(default=0.01, ge=0, le=10)
    lora: LoraHyperparameters = LoraHyperparameters()


class EvaluationSettings(BaseModel):
    """How the arms' answers are made and compared."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    prompts: int = Field(default=200, ge=1, le=10_000)
    max_new_tokens: int = Field(default=96, ge=1, le=8192)
    temperature: float = Field(default=0.8, ge=0, le=2)
    batch_size: int = Field(default=32, ge=1, le=1024)
    samples: int = Field(default=8, ge=0, le=100, description="answers shown in the report")


def parse_hyperparameters(model: type[P], *layers: Mapping[str, Any]) -> P:
    """The parameters from layers of settings; later layers win.

    Raises:
        InvalidJob: an unknown name or a value out of bounds; names the field and the rule.

    """
    merged: dict[str, Any] = {}
    for layer in layers:
        if not isinstance(layer, Mapping):
            raise InvalidJob(f"hyperparameters: an object is wanted in place of {layer!r}")
        merged.update(layer)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        rules = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'hyperparameters'}: {item['msg']}"
            for item in error.errors(include_url=False, include_context=False)
        )
        known = ", ".join(sorted(model.model_fields))
        raise InvalidJob(f"hyperparameters: {rules}; known are {known}") from None
