"""Settings of the feedback service: RATCHET_FEEDBACK_…, and those that every service shares."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from services.feedback.submissions import SubmissionRules
from shared.http.cors import check_origins
from shared.settings import ServiceSettings, service_config, split_list


class FeedbackSettings(ServiceSettings):
    """What the environment may change."""

    model_config = service_config("feedback")

    port: int = Field(default=8081, ge=1, le=65535)
    router_url: str = Field(default="http://127.0.0.1:8080", pattern=r"^https?://")
    router_timeout_s: float = Field(default=30.0, gt=0, le=300)
    append_timeout_s: float = Field(
        default=4.0,
        gt=0,
        le=4.5,
        description="longest wait for the brokers; a 503 follows within 5 s",
    )
    max_waiting: int = Field(default=20_000, ge=1, description="events waiting for the brokers")
    max_body_bytes: int = Field(default=1_000_000, ge=1_000, le=16_000_000)
    max_batch_bytes: int = Field(default=16_000_000, ge=1_000, le=64_000_000)
    body_timeout_s: float = Field(default=10.0, gt=0, le=60)
    comparison_ttl_s: int = Field(default=3600, ge=10, le=86_400)
    max_comparisons: int = Field(default=64, ge=1, description="being answered at one time")
    anonymous_votes: Literal["profile", "on", "off"] = Field(
        default="profile", description="profile: on in the local profile only"
    )
    use_anonymous_feedback: bool = Field(
        default=False, description="feedback without user_id reaches the judge and datasets"
    )
    max_age_days: float = Field(
        default=30.0, ge=0, le=3650, description="how far back a timestamp may lie"
    )
    max_ahead_s: float = Field(
        default=300.0, ge=0, le=86_400, description="how far ahead a timestamp may lie"
    )
    intake: bool = Field(default=True, description="consume the tenants' intake topics")
    intake_concurrency: int = Field(default=200, ge=1, le=5000)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="origins of pages whose browsers may call, by commas; * for any"
    )

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        return split_list(value)

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return check_origins(value)

    @property
    def rules(self) -> SubmissionRules:
        """The rules of submissions."""
        return SubmissionRules(
            use_anonymous=self.use_anonymous_feedback,
            max_age=timedelta(days=self.max_age_days),
            max_ahead=timedelta(seconds=self.max_ahead_s),
        )

    @property
    def takes_anonymous_votes(self) -> bool:
        """Whether a vote without user_id is taken."""
        if self.anonymous_votes == "profile":
            return self.profile == "local"
        return self.anonymous_votes == "on"
