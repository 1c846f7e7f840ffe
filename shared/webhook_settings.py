"""Settings of signed webhooks, from `RATCHET_<SERVICE>_WEBHOOK_…`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import AnyHttpUrl, Field, TypeAdapter, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.credentials import read_secret
from shared.setting_fields import split_list

_URL = TypeAdapter(AnyHttpUrl)


class WebhookSettings(BaseSettings):
    """Where a service posts what happened, and the secret that it signs with; none by default."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    webhook_urls: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), max_length=16, description="addresses that what happened is posted to"
    )
    webhook_secret_file: Path | None = Field(
        default=None, description="the secret that webhooks are signed with"
    )

    @field_validator("webhook_urls", mode="before")
    @classmethod
    def _split_urls(cls, value: object) -> object:
        return split_list(value)

    @field_validator("webhook_urls")
    @classmethod
    def _check_webhook_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            _URL.validate_python(url)
        return tuple(url.rstrip("/") for url in value)

    @model_validator(mode="after")
    def _check_webhooks(self) -> Self:
        if bool(self.webhook_urls) != bool(self.webhook_secret_file):
            raise ValueError(
                f"{self._webhook_variable('URLS')}: must be set together with "
                f"{self._webhook_variable('SECRET_FILE')}, as every webhook is signed"
            )
        return self

    def webhook_secret(self) -> str:
        """The secret that webhooks are signed with, as the file has it now.

        Raises:
            CredentialsUnreadable: the file cannot be read.

        """
        assert self.webhook_secret_file is not None
        return read_secret(self.webhook_secret_file, self._webhook_variable("SECRET_FILE"))

    def _webhook_variable(self, name: str) -> str:
        return f"{self.model_config.get('env_prefix', '')}WEBHOOK_{name}"
