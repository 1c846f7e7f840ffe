"""Settings of training, from RATCHET_TRAINING_… and the shared RATCHET_… variables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import NoDecode

from services.training.evaluation import EvaluationSettings
from services.training.gate import GateLimits
from services.training.generation import GenerationSettings
from services.training.plans import PLANS, CollectionPlan, PlanName
from services.training.sides import DatasetRules
from shared.contracts.events.base import ModelName
from shared.contracts.recipes import HYPERPARAMETERS, MAX_SEED, ONLINE, parse
from shared.credentials import bearer, read_secret
from shared.setting_fields import HttpAddress
from shared.settings import ServiceSettings, service_config, shared_name, split_list
from shared.webhook_settings import WebhookSettings


class TrainingSettings(ServiceSettings, WebhookSettings):
    """How training runs, when it starts by itself, and what a release must be like."""

    model_config = service_config("training")

    port: int = Field(default=8086, ge=0, le=65535)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    datasets_uri: str = Field(
        default="file://.run/datasets", validation_alias=shared_name("datasets_uri")
    )
    code_revision: str = Field(default="", validation_alias=shared_name("code_revision"))
    python: str = ".venv-ml/bin/python"
    mlflow_tracking_uri: str = Field(
        default="",
        validation_alias=AliasChoices("MLFLOW_TRACKING_URI"),
        description="jobs are logged there; empty: nowhere",
    )
    mlflow_python: str = Field(default="", description="one that has mlflow; empty: `python`")
    threads: int = Field(default=0, ge=0, le=1024)
    accelerate: str = Field(
        default="",
        description="configuration of `accelerate launch` for several GPUs; empty: one process",
    )
    nice: int = Field(default=10, ge=0, le=19)
    stall_s: float = Field(default=900.0, gt=0)
    restarts: int = Field(default=2, ge=0, le=100)
    attempts: int = Field(default=2, ge=1, le=10)
    keep_jobs: int = Field(default=10, ge=1)
    max_context: int = Field(
        default=512,
        ge=16,
        le=131_072,
        validation_alias=shared_name("inference_max_context"),
        description="tokens that the engine serves: max_length where none is given",
    )
    min_free_bytes: int = Field(
        default=2**30,
        ge=0,
        description="free on the disk of RATCHET_DATA_DIR before a job begins, and to go on",
    )
    max_lora_rank: int = Field(default=16, ge=1)
    model: ModelName = "assistant"
    import_roots: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="paths or URIs below which a job's dataset_uri may lie"
    )
    method: Literal["dpo", "kto"] = Field(
        default="dpo", description="of jobs that start by themselves; kto trains on thumbs too"
    )
    min_pairs: int = Field(default=100, ge=0, description="new pairs of a training without a plan")
    plan: PlanName | Literal[""] = Field(
        default="", description="volume and cadence of trainings that start by themselves"
    )
    plan_categories: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), max_length=32, description="categories that a training needs new pairs of"
    )
    plan_per_category: int = Field(default=10, ge=1, description="of each of plan_categories")
    reward_every_days: float = Field(
        default=30.0,
        ge=0,
        le=3650,
        description="age at which a reward model is made anew; 0: never",
    )
    reward_max_drift: float = Field(
        default=0.2,
        ge=0,
        le=10,
        description="stability index of its pairs at which it is made anew; 0: never",
    )
    reward_fresh_votes: int = Field(
        default=100,
        ge=10,
        le=500,
        description="votes that came after the reward model, from which on its accuracy on them counts",
    )
    inference_url: Annotated[tuple[HttpAddress, ...], NoDecode] = Field(
        default=(), description="where fresh votes are scored; empty: nowhere"
    )
    score_api_key_file: Path | None = Field(
        default=None,
        description="file with the API key by which scores are asked for; none: no key",
    )
    judge_key_file: Path | None = Field(
        default=None, description="file with the key of the evaluation's AI judge; none: no key"
    )
    lease_s: float = Field(
        default=20.0,
        ge=6.0,
        le=300.0,
        description="silence after which another replica does the jobs",
    )
    schedule_interval_s: float = Field(default=2.0, gt=0)
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    sft: dict[str, Any] = Field(default_factory=dict)
    dpo: dict[str, Any] = Field(default_factory=dict)
    kto: dict[str, Any] = Field(default_factory=dict)
    grpo: dict[str, Any] = Field(default_factory=dict)
    rloo: dict[str, Any] = Field(default_factory=dict)
    ppo: dict[str, Any] = Field(default_factory=dict)
    online_dpo: dict[str, Any] = Field(default_factory=dict)
    reward: dict[str, Any] = Field(default_factory=dict)
    evaluation: EvaluationSettings = EvaluationSettings()
    generation: GenerationSettings = GenerationSettings()
    gate: GateLimits = GateLimits()
    rules: DatasetRules = DatasetRules()

    @field_validator("import_roots", "inference_url", "plan_categories", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return split_list(value)

    @property
    def collection_plan(self) -> CollectionPlan:
        """The plan by its name, else one of `min_pairs` at any time, with the coverage given."""
        plan = PLANS[self.plan] if self.plan else CollectionPlan(pairs=self.min_pairs)
        coverage = {"categories": self.plan_categories, "per_category": self.plan_per_category}
        return plan.model_copy(update=coverage)

    @property
    def algorithm(self) -> str:
        """The algorithm of jobs that start by themselves; empty for the method's own."""
        return "" if self.method == "dpo" else self.method

    @property
    def readable_import_roots(self) -> tuple[str, ...]:
        """Where imports may lie: the roots given, else any local file in the local profile."""
        if self.import_roots:
            return self.import_roots
        return ("/",) if self.profile == "local" else (self.datasets_uri,)

    def judge_key(self) -> str:
        """The key for the evaluation's AI judge; empty where it asks for none.

        Raises:
            CredentialsUnreadable: the file cannot be read.

        """
        if self.judge_key_file is None:
            return ""
        return read_secret(self.judge_key_file, "RATCHET_TRAINING_JUDGE_KEY_FILE")

    def score_authorization(self) -> str:
        """The header of a request for scores; empty without a key.

        Raises:
            CredentialsUnreadable: the file cannot be read.

        """
        return bearer(self.score_api_key_file, "RATCHET_TRAINING_SCORE_API_KEY_FILE")

    @field_validator("sft", "dpo", "kto", "grpo", "rloo", "ppo", "online_dpo", "reward")
    @classmethod
    def _known(cls, value: dict[str, Any], info: Any) -> dict[str, Any]:
        parse(HYPERPARAMETERS[info.field_name], value)
        return value

    def hyperparameters(self, method: str) -> dict[str, Any]:
        """What this service sets over a method's defaults."""
        own: dict[str, Any] = {"max_length": self.max_context}
        if method in ONLINE:
            own["generation"] = self.generation.engine
        return own | getattr(self, method)
