"""Settings of the detector of personal data, from `RATCHET_DETECTOR_…`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.credentials import read_secret
from shared.setting_fields import shared_name, split_list


class DetectorSettings(BaseSettings):
    """How a detector of personal data is asked beside the rules; none without an address."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    detector_url: str = Field(
        default="",
        pattern=r"^$|^https?://[^/]+$",
        validation_alias=shared_name("detector_url"),
        description="of an analyzer with Presidio's POST /analyze; empty: rules alone",
    )
    detector_key_file: Path | None = Field(
        default=None,
        validation_alias=shared_name("detector_key_file"),
        description="file with the analyzer's key, sent as a bearer token",
    )
    detector_languages: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("en",),
        min_length=1,
        max_length=4,
        validation_alias=shared_name("detector_languages"),
        description="each text is asked about in each of them",
    )
    detector_entities: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("PERSON", "LOCATION"),
        validation_alias=shared_name("detector_entities"),
        description="what is looked for; empty: all that the analyzer knows",
    )
    detector_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        validation_alias=shared_name("detector_allow"),
        description="words that are never personal, such as a product's name",
    )
    detector_score: float = Field(
        default=0.5, ge=0, le=1, validation_alias=shared_name("detector_score")
    )
    detector_timeout_s: float = Field(
        default=5.0, gt=0, le=30, validation_alias=shared_name("detector_timeout_s")
    )
    detector_running: int = Field(
        default=8,
        ge=1,
        le=256,
        validation_alias=shared_name("detector_running"),
        description="requests at a time of each process; more wait within the deadline",
    )
    detector_fails: Literal["open", "closed"] = Field(
        default="closed",
        validation_alias=shared_name("detector_fails"),
        description="closed: a text that could not be checked is not stored, a marker stands for "
        "it; open: it is stored as the rules leave it",
    )

    @field_validator("detector_languages", "detector_entities", "detector_allow", mode="before")
    @classmethod
    def _split_words(cls, value: object) -> object:
        return split_list(value)

    def detector_headers(self) -> dict[str, str]:
        """Headers of a question to the detector, with the key as its file has it now.

        Raises:
            CredentialsUnreadable: the file cannot be read.

        """
        if self.detector_key_file is None:
            return {}
        key = read_secret(self.detector_key_file, "RATCHET_DETECTOR_KEY_FILE")
        return {"authorization": f"Bearer {key}"}
