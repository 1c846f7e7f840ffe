"""Settings of the rollout service, from `RATCHET_ROLLOUT_…` (and the shared `RATCHET_…`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AnyHttpUrl, Field, TypeAdapter, field_validator, model_validator
from pydantic_settings import NoDecode

from shared.credentials import bearer
from shared.observability.logging import Level
from shared.settings import ServiceSettings, service_config, shared_name, split_list
from shared.webhook_settings import WebhookSettings

_URL = TypeAdapter(AnyHttpUrl)
_MATCHER = r'\s*[a-zA-Z_][a-zA-Z0-9_]*\s*(?:=~|!~|!=|=)\s*"(?:[^"\\\n]|\\.)*"\s*'
_MATCHERS = re.compile(f"{_MATCHER}(?:,{_MATCHER})*")


class RolloutSettings(ServiceSettings, WebhookSettings):
    """Settings of the rollout service. Durations are in seconds."""

    model_config = service_config("rollout")

    port: int = Field(default=8082, ge=1, le=65535)
    strategy: Path = Field(
        default=Path(__file__).parent / "strategies" / "default.yaml",
        description="the strategy of rollouts that name none; others are named by files beside it",
    )
    agents: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("http://127.0.0.1:8084",), min_length=1, description="adapter agents' URLs"
    )
    auto_start: bool = Field(
        default=True, description="start rollouts of released versions by itself"
    )
    look_interval_s: float = Field(default=1.0, ge=0.05, le=30)
    hold_interval_s: float = Field(
        default=4.0, ge=0.2, le=20, description="sign of life that keeps the candidate's weight"
    )
    router_matchers: str = Field(
        default="",
        max_length=1000,
        description="PromQL label matchers of this installation's routers; empty: all routers",
    )
    prometheus_method: Literal["POST", "GET"] = Field(
        default="POST", validation_alias=shared_name("prometheus_method")
    )
    prometheus_token_file: Path | None = Field(
        default=None, validation_alias=shared_name("prometheus_token_file")
    )
    prometheus_username: str = Field(
        default="", validation_alias=shared_name("prometheus_username")
    )
    prometheus_password_file: Path | None = Field(
        default=None, validation_alias=shared_name("prometheus_password_file")
    )
    prometheus_headers_file: Path | None = Field(
        default=None,
        validation_alias=shared_name("prometheus_headers_file"),
        description="lines `Name: value`",
    )
    prometheus_ca_file: Path | None = Field(
        default=None, validation_alias=shared_name("prometheus_ca_file")
    )
    score_api_key_file: Path | None = Field(
        default=None, description="file with the API key (infer) by which answers are scored"
    )
    log_level: Level = "info"
    no_data_after_s: float = Field(default=30.0, gt=0)
    series_grace_s: float = Field(
        default=900.0, ge=0, description="how long series of an ended rollout stay"
    )

    @field_validator("agents", mode="before")
    @classmethod
    def _split_lists(cls, value: object) -> object:
        return split_list(value)

    @field_validator("agents")
    @classmethod
    def _check_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            _URL.validate_python(url)
        return tuple(url.rstrip("/") for url in value)

    @field_validator("router_matchers")
    @classmethod
    def _check_matchers(cls, value: str) -> str:
        text = value.strip()
        if text and not _MATCHERS.fullmatch(text):
            raise ValueError(
                "must be PromQL label matchers, comma-separated, without braces and with values in "
                'double quotes; write for example namespace="prod",cluster=~"eu-.*"'
            )
        return text

    def score_authorization(self) -> str:
        """The header of a request for scores, as the file has the key now; empty without a key.

        Raises:
            CredentialsUnreadable: the file cannot be read.

        """
        return bearer(self.score_api_key_file, "RATCHET_ROLLOUT_SCORE_API_KEY_FILE")

    @model_validator(mode="after")
    def _check_prometheus(self) -> Self:
        if self.prometheus_token_file and self.prometheus_password_file:
            raise ValueError(
                "RATCHET_PROMETHEUS_TOKEN_FILE: must not be set beside "
                "RATCHET_PROMETHEUS_PASSWORD_FILE; Prometheus takes one of them"
            )
        if bool(self.prometheus_username) != bool(self.prometheus_password_file):
            raise ValueError(
                "RATCHET_PROMETHEUS_USERNAME: must be set together with "
                "RATCHET_PROMETHEUS_PASSWORD_FILE"
            )
        return self
