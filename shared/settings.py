"""Settings from the environment: `RATCHET_…` variables, read once in a service's `__main__`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.tenants import check_tenants

EXIT_CONFIGURATION = 2
"""Exit status of a service whose settings are wrong."""


def shared_name(name: str) -> AliasChoices:
    """The variable of a setting that every service reads under the same name."""
    return AliasChoices(f"RATCHET_{name.upper()}")


class ServiceSettings(BaseSettings):
    """What every service reads.

    A service's own fields take its prefix, by `model_config = service_config("router")`: its
    `port` is then RATCHET_ROUTER_PORT, while the fields here keep the plain RATCHET_.
    """

    model_config = SettingsConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    kafka_bootstrap: str = Field(
        default="127.0.0.1:9092", validation_alias=shared_name("kafka_bootstrap")
    )
    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0", validation_alias=shared_name("redis_url")
    )
    prometheus_url: str = Field(
        default="http://127.0.0.1:9090", validation_alias=shared_name("prometheus_url")
    )
    profile: Literal["local", "production"] = Field(
        default="local", validation_alias=shared_name("profile")
    )
    data_dir: Path = Field(default=Path(".run/data"), validation_alias=shared_name("data_dir"))
    adapters_uri: str = Field(
        default="file://.run/adapters", validation_alias=shared_name("adapters_uri")
    )
    adapter_roots: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        validation_alias=shared_name("adapter_roots"),
        description="further paths or URIs below which registered adapters may lie",
    )
    adapter_max_bytes: int = Field(
        default=8 * 2**30, gt=0, validation_alias=shared_name("adapter_max_bytes")
    )
    tenants: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("default",), validation_alias=shared_name("tenants")
    )
    host: str = Field(default="127.0.0.1", validation_alias=shared_name("host"))

    @field_validator("tenants", "adapter_roots", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return split_list(value)

    @field_validator("tenants")
    @classmethod
    def _fit_for_topics(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return check_tenants(value)

    @property
    def readable_adapter_roots(self) -> tuple[str, ...]:
        """Roots below which an adapter may be fetched: where training publishes, and further ones."""
        return (self.adapters_uri, *self.adapter_roots)

    @classmethod
    def load(cls) -> Self:
        """Read the environment; a wrong value ends the process with a clear message."""
        try:
            return cls()
        except ValidationError as error:
            prefix = str(cls.model_config.get("env_prefix", "RATCHET_"))
            for item in error.errors(include_url=False, include_context=False):
                name = str(item["loc"][0])
                variable = name if name.startswith("RATCHET_") else f"{prefix}{name.upper()}"
                given = os.environ.get(variable)
                shown = f"{given!r} given" if given is not None else "not set"
                print(f"{variable}: {item['msg']} ({shown})", file=sys.stderr)
            raise SystemExit(EXIT_CONFIGURATION) from None


def service_config(service: str) -> SettingsConfigDict:
    """The settings configuration of a service: its own prefix for its own fields."""
    return SettingsConfigDict(
        env_prefix=f"RATCHET_{service.upper()}_",
        extra="ignore",
        frozen=True,
        populate_by_name=True,
    )


def split_list(value: object) -> object:
    """A comma-separated text as a tuple; other values as they are."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value
