"""Settings that the feedback API and the intake share: RATCHET_FEEDBACK_…."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import Field

from services.feedback.submissions import SubmissionRules
from shared.settings import ServiceSettings, shared_name


class IngestionSettings(ServiceSettings):
    """What decides which feedback is accepted, by whichever way it comes."""

    append_timeout_s: float = Field(
        default=4.0,
        gt=0,
        le=4.5,
        validation_alias=shared_name("feedback_append_timeout_s"),
        description="longest wait for the brokers; a 503 follows within 5 s",
    )
    max_waiting: int = Field(
        default=20_000,
        ge=1,
        validation_alias=shared_name("feedback_max_waiting"),
        description="events waiting for the brokers",
    )
    use_anonymous_feedback: bool = Field(
        default=False,
        validation_alias=shared_name("feedback_use_anonymous_feedback"),
        description="feedback without user_id reaches the judge and datasets",
    )
    classify_follow_ups: bool = Field(
        default=False,
        validation_alias=shared_name("feedback_classify_follow_ups"),
        description="tell by rule whether the next turn of a follow_up objects",
    )
    max_age_days: float = Field(
        default=30.0,
        ge=0,
        le=3650,
        validation_alias=shared_name("feedback_max_age_days"),
        description="how far back a timestamp may lie",
    )
    max_ahead_s: float = Field(
        default=300.0,
        ge=0,
        le=86_400,
        validation_alias=shared_name("feedback_max_ahead_s"),
        description="how far ahead a timestamp may lie",
    )
    tenant_events_per_minute: int = Field(
        default=0,
        ge=0,
        validation_alias=shared_name("feedback_tenant_events_per_minute"),
        description="by the API and the intake together; 0: no bound",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", validation_alias=shared_name("feedback_log_level")
    )

    @property
    def rules(self) -> SubmissionRules:
        """The rules of submissions."""
        return SubmissionRules(
            use_anonymous=self.use_anonymous_feedback,
            classify_follow_ups=self.classify_follow_ups,
            max_age=timedelta(days=self.max_age_days),
            max_ahead=timedelta(seconds=self.max_ahead_s),
            pseudonyms=self.user_pseudonyms(),
        )
