"""Settings of the inference service: RATCHET_INFERENCE_…, and those that every service shares."""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode

from shared.credentials import read_secret
from shared.registry.adapters import TOLERANCE
from shared.settings import ServiceSettings, service_config, split_list

CRITIC_KEY = "RATCHET_INFERENCE_MODERATION_CRITIC_KEY_FILE"


class InferenceSettings(ServiceSettings):
    """Settings of the inference service."""

    model_config = service_config("inference")

    port: int = Field(default=8084, ge=1, le=65535)
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="names whose versions belong here; none: all"
    )
    base_model: str = Field(
        default="", description="path or hub id; needed unless the engine is external"
    )
    engine_url: str = Field(default="http://127.0.0.1:8000", pattern=r"^https?://[^/]+:\d+$")
    engine_bind: str = Field(
        default="", description="address the engine listens on; empty: that of engine_url"
    )
    engine_external: bool = Field(
        default=False, description="use the running engine at engine_url, start none"
    )
    engine_python: Path = Path(".venv-ml/bin/python")
    engine_profile: Literal["cpu", "gpu"] = "cpu"
    engine_dtype: Literal["", "float32", "bfloat16"] = Field(
        default="", description="empty: float32 on cpu, bfloat16 on gpu"
    )
    engine_log: Path | None = Field(default=None, description="none: the engine shares our stderr")
    engine_options: str = Field(
        default="", description="further options of vLLM, as on a command line"
    )
    tool_parser: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9_.-]{0,64}$",
        description="vLLM's parser of the base model's tool calls, such as hermes for Qwen; empty: "
        "vLLM refuses requests whose tool_choice is not none",
    )
    engine_start_timeout_s: float = Field(default=600.0, gt=0, le=3600)
    engine_unhealthy_after_s: float = Field(
        default=60.0, gt=0, le=600, description="without a healthy answer it is started again"
    )
    engine_drain_s: float = Field(
        default=60.0,
        ge=0,
        le=3600,
        description="how long an engine that is about to stop may take to end its requests; stopping "
        "takes up to a minute more",
    )
    max_adapters: int = Field(default=4, ge=1, le=32)
    max_adapter_rank: Literal[8, 16, 32, 64, 128, 256] = 16
    max_context: int = Field(default=512, ge=16, description="tokens of prompt and answer")
    kv_cache_gib: int = Field(default=1, ge=1, description="of the cpu profile")
    engine_threads: int = Field(
        default=0, ge=0, le=1024, description="of the cpu profile; 0: one for each core"
    )
    gpu_memory_ratio: float = Field(default=0.85, gt=0, le=1, description="of the gpu profile")
    tensor_parallel: int = Field(default=1, ge=1, le=64)
    tolerance: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="nats a fingerprint may differ; none: 0.02 in float32, 0.1 in bfloat16",
    )
    drain_grace_s: float = Field(
        default=5.0, ge=0, le=600, description="an adapter stays at least so long once unwanted"
    )
    drain_limit_s: float = Field(default=60.0, ge=0, le=3600, description="and at most so long")
    batch_concurrency: int = Field(default=4, ge=1, le=256)
    batch_timeout_s: float = Field(default=120.0, gt=0, le=3600, description="one generation")
    batch_wait_s: float = Field(
        default=120.0, gt=0, le=3600, description="for a version to become ready"
    )
    moderation_policy: str = Field(
        default="", max_length=32_768, description="business policy, the system prompt"
    )
    moderation_critic: str = Field(
        default="",
        max_length=200,
        description="model or version that rewrites; empty: the one that wrote",
    )
    moderation_critic_url: str = Field(
        default="",
        pattern=r"^(https?://[^/]+(/.*)?[^/])?$",
        description="OpenAI-compatible endpoint of the critic, without /v1; empty: the engine",
    )
    moderation_critic_key_file: Path | None = Field(
        default=None, description="file with the key of that endpoint"
    )
    moderation_writer_s: float = Field(default=30.0, gt=0, le=600)
    moderation_critic_s: float = Field(default=30.0, gt=0, le=600)
    moderation_score_s: float = Field(default=10.0, gt=0, le=600)
    moderation_pairs: bool = Field(
        default=False, description="publish pairs of writer and critic, marked as synthetic"
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("models", mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        return split_list(value)

    @model_validator(mode="after")
    def _critic_has_a_name(self) -> Self:
        if self.moderation_critic_url and not self.moderation_critic:
            raise ValueError(
                "RATCHET_INFERENCE_MODERATION_CRITIC: name the model to ask for at "
                "RATCHET_INFERENCE_MODERATION_CRITIC_URL"
            )
        return self

    def critic_headers(self) -> dict[str, str]:
        """What a request to the critic's own endpoint carries: its key.

        Raises:
            CredentialsUnreadable: the file cannot be read.

        """
        if self.moderation_critic_key_file is None:
            return {}
        key = read_secret(self.moderation_critic_key_file, CRITIC_KEY)
        return {"Authorization": f"Bearer {key}"}

    @property
    def engine_address(self) -> tuple[str, int]:
        """Where the engine listens."""
        parts = urlsplit(self.engine_url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    @model_validator(mode="after")
    def _one_revision(self) -> Self:
        asked, revision = self._revision_of_options, self.revision_of(self.base_model)
        if asked and revision and asked != revision:
            raise ValueError(
                f"RATCHET_BASE_REVISION: is {revision}, and --revision of "
                f"RATCHET_INFERENCE_ENGINE_OPTIONS is {asked}; leave the latter out"
            )
        return self

    @property
    def served_revision(self) -> str:
        """The hub's revision of the base that the engine serves."""
        return self._revision_of_options or self.revision_of(self.base_model) or "main"

    @property
    def _revision_of_options(self) -> str:
        options = shlex.split(self.engine_options.replace("=", " "))
        return next((value for name, value in pairwise(options) if name == "--revision"), "")

    @property
    def dtype(self) -> Literal["float32", "bfloat16"]:
        """What the engine computes in."""
        return self.engine_dtype or ("float32" if self.engine_profile == "cpu" else "bfloat16")

    def tolerance_of(self, recorded: str) -> float:
        """Nats that a fingerprint recorded in that dtype may differ here: the coarser one's."""
        return self.tolerance or max(TOLERANCE[recorded], TOLERANCE[self.dtype])
