"""Settings of the intake: RATCHET_INTAKE_…, and those that it shares with the feedback API."""

from __future__ import annotations

from pydantic import Field

from services.feedback.ingestion_settings import IngestionSettings
from shared.settings import service_config


class IntakeSettings(IngestionSettings):
    """What the environment may change."""

    model_config = service_config("intake")

    port: int = Field(
        default=8087, ge=1, le=65535, description="health and metrics; it serves nothing else"
    )
    concurrency: int = Field(default=200, ge=1, le=5000, description="records handled at one time")
    memory_mib: int = Field(
        default=384,
        ge=128,
        le=65_536,
        description="memory beyond which the process ends and is started again",
    )
