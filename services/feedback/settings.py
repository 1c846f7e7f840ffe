"""Settings of the feedback service: RATCHET_FEEDBACK_…, and those that every service shares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from services.feedback.ingestion_settings import IngestionSettings
from services.feedback.pair_choice import MAX_CANDIDATES
from shared.credentials import CredentialsUnreadable, bearer, read_secret
from shared.http.cors import check_origins
from shared.information import DRAWN_SHARE
from shared.setting_fields import HttpAddress
from shared.settings import service_config, split_list

MIN_SECRET = 32
"""Least length of the voting page's secret in characters."""


class FeedbackSettings(IngestionSettings):
    """What the environment may change."""

    model_config = service_config("feedback")

    port: int = Field(default=8081, ge=1, le=65535)
    router_url: str = Field(default="http://127.0.0.1:8080", pattern=r"^https?://")
    router_timeout_s: float = Field(default=30.0, gt=0, le=300)
    max_body_bytes: int = Field(default=1_000_000, ge=1_000, le=16_000_000)
    max_batch_bytes: int = Field(default=16_000_000, ge=1_000, le=64_000_000)
    body_timeout_s: float = Field(default=10.0, gt=0, le=60)
    comparison_ttl_s: int = Field(default=3600, ge=10, le=86_400)
    max_comparisons: int = Field(default=64, ge=1, description="being answered at one time")
    anonymous_votes: Literal["profile", "on", "off"] = Field(
        default="profile", description="profile: on in the local profile only"
    )
    key_events_per_minute: int = Field(
        default=0, ge=0, description="feedback, votes and comparisons of each key; 0: no bound"
    )
    key_queries_per_minute: int = Field(
        default=0, ge=0, description="queries of examples and feedback of each key; 0: no bound"
    )
    read_model: bool = Field(default=True, description="keep a read model and answer queries")
    read_model_days: float = Field(
        default=90.0, gt=0, le=3650, description="age at which rows leave the read model"
    )
    read_model_max_mb: int = Field(
        default=2_000, ge=10, le=1_000_000, description="beyond it the oldest rows leave"
    )

    voting_secret_file: Path | None = Field(
        default=None,
        description="file with the secret of invites and sessions; none: the voting page is off",
    )
    voting_plan_file: Path | None = Field(
        default=None, description="YAML: model, goal, categories, prompts, guidelines"
    )
    voting_user_header: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9-]*$",
        description="header of a trusted proxy that names the rater; empty: invites only",
    )
    voting_rank_hours: float = Field(
        default=0.0, ge=0, le=24 * 30, description="the queue is ranked so often; 0: never"
    )
    voting_rank_prompts: int = Field(
        default=100, ge=1, le=500, description="answered by two versions each time, at most"
    )
    voting_candidates: int = Field(
        default=1,
        ge=1,
        le=MAX_CANDIDATES,
        description="answers of each version of which the page shows the most informative pair; 1: any",
    )
    voting_drawn_share: float = Field(
        default=DRAWN_SHARE,
        ge=0.05,
        le=1,
        description="of the page's comparisons, those on any prompt of the queue and any two answers",
    )
    inference_url: Annotated[tuple[HttpAddress, ...], NoDecode] = Field(
        default=("http://127.0.0.1:8084",), min_length=1, description="scores for the ranking"
    )
    voting_session_hours: float = Field(default=12.0, gt=0, le=24 * 30)
    router_api_key_file: Path | None = Field(
        default=None,
        description="file with the API key by which the voting page asks the router",
    )

    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="origins of pages whose browsers may call, by commas; * for any"
    )

    embed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="origins of pages that may embed the voting page, by commas"
    )

    @field_validator("inference_url", "cors_origins", "embed_origins", mode="before")
    @classmethod
    def _split_lists(cls, value: object) -> object:
        return split_list(value)

    @field_validator("cors_origins", "embed_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return check_origins(value)

    @field_validator("embed_origins")
    @classmethod
    def _are_named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "*" in value:
            raise ValueError("name each origin: whoever embeds the page can cover its buttons")
        return value

    def voting_secret(self) -> str:
        """The secret of invites and sessions; empty where the voting page is off.

        Raises:
            CredentialsUnreadable: the file cannot be read, or its secret is too short.

        """
        if self.voting_secret_file is None:
            return ""
        variable = "RATCHET_FEEDBACK_VOTING_SECRET_FILE"
        secret = read_secret(self.voting_secret_file, variable)
        if len(secret) < MIN_SECRET:
            raise CredentialsUnreadable(
                f"{variable}: the secret has {len(secret)} characters; at least {MIN_SECRET} are "
                "needed, such as those of `openssl rand -base64 32`"
            )
        return secret

    def router_authorization(self) -> str:
        """The Authorization header of the voting page's own requests; empty without a key.

        Raises:
            CredentialsUnreadable: the file cannot be read.

        """
        return bearer(self.router_api_key_file, "RATCHET_FEEDBACK_ROUTER_API_KEY_FILE")

    @property
    def takes_anonymous_votes(self) -> bool:
        """Whether a vote without user_id is taken."""
        if self.anonymous_votes == "profile":
            return self.profile == "local"
        return self.anonymous_votes == "on"
