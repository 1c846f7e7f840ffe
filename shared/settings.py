"""Settings from the environment: `RATCHET_…` variables, read once in a service's `__main__`."""

from __future__ import annotations

import ipaddress
import os
import sys
from pathlib import Path
from ssl import SSLContext
from typing import Annotated, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from shared.connection_settings import KafkaSettings, RedisSettings
from shared.credentials import CredentialsUnreadable, read_secret, tls_context
from shared.detector_settings import DetectorSettings
from shared.pseudonyms import AS_THEY_COME, MIN_SECRET, UserPseudonyms
from shared.setting_fields import revisions_of, shared_name, split_list
from shared.tenants import DEFAULT_TENANT, ModelTenants, check_tenants

EXIT_CONFIGURATION = 2
"""Exit status of a service whose settings are wrong."""


def _secret_of(path: Path, variable: str) -> bytes:
    secret = read_secret(path, variable).encode()
    if len(secret) < MIN_SECRET:
        raise CredentialsUnreadable(
            f"{variable}: the secret has {len(secret)} bytes; at least {MIN_SECRET} are needed, "
            "such as those of openssl rand -hex 32"
        )
    return secret


class ServiceSettings(KafkaSettings, RedisSettings, DetectorSettings):
    """What every service reads.

    A service's own fields take its prefix, by `model_config = service_config("router")`: its
    `port` is then RATCHET_ROUTER_PORT, while the fields here keep the plain RATCHET_.
    """

    prometheus_url: str = Field(
        default="http://127.0.0.1:9090", validation_alias=shared_name("prometheus_url")
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
    media_uri: str = Field(
        default="",
        validation_alias=shared_name("media_uri"),
        description="fsspec root of pictures, audio and files that people sent; empty: not kept",
    )
    tenants: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("default",), validation_alias=shared_name("tenants")
    )
    model_tenants: Annotated[dict[str, str], NoDecode] = Field(
        default={},
        validation_alias=shared_name("model_tenants"),
        description="model=tenant, comma-separated: whose keys with the scope operate act on it; "
        "none: every such key acts on everything",
    )
    operators_tenant: str = Field(
        default=DEFAULT_TENANT,
        validation_alias=shared_name("operators_tenant"),
        description="whose keys act on every model, where model_tenants is set",
    )
    base_revision: Annotated[dict[str, str], NoDecode] = Field(
        default={},
        validation_alias=shared_name("base_revision"),
        description="branch, tag or commit of the hub at which bases are trained on and served: "
        "base@revision, comma-separated, or one for all bases that are not named; none: main",
    )
    engine_api_key_file: Path | None = Field(
        default=None,
        validation_alias=shared_name("engine_api_key_file"),
        description="file with the key that engines ask for",
    )
    engine_ca_file: Path | None = Field(
        default=None,
        validation_alias=shared_name("engine_ca_file"),
        description="PEM of the authorities of engines by https; none: the system's",
    )
    user_id_key_file: Path | None = Field(
        default=None,
        validation_alias=shared_name("user_id_key_file"),
        description="file with the secret by which user ids are hashed; none: stored as they come",
    )
    host: str = Field(default="127.0.0.1", validation_alias=shared_name("host"))
    operations_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="a port of its own for /metrics and /docs; 0: they are on the service's port",
    )
    local_open: bool = Field(
        default=False,
        validation_alias=shared_name("local_open"),
        description="let the local profile, which asks for no key, serve other machines",
    )

    @field_validator("tenants", "adapter_roots", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return split_list(value)

    @field_validator("model_tenants", mode="before")
    @classmethod
    def _split_pairs(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        found = {model.strip(): tenant.strip() for model, _, tenant in pairs}
        if len(found) < len(pairs):
            raise ValueError("names a model twice; a model has one tenant")
        return found

    @field_validator("base_revision", mode="before")
    @classmethod
    def _split_revisions(cls, value: object) -> object:
        return revisions_of(value)

    @field_validator("model_tenants")
    @classmethod
    def _have_tenants(cls, value: dict[str, str]) -> dict[str, str]:
        if not all(value):
            raise ValueError("a part names no model; write model=tenant, comma-separated")
        check_tenants(value.values())
        return value

    @field_validator("operators_tenant")
    @classmethod
    def _has_a_name(cls, value: str) -> str:
        return check_tenants((value,))[0]

    @field_validator("tenants")
    @classmethod
    def _fit_for_topics(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return check_tenants(value)

    def revision_of(self, base: str) -> str:
        """The hub's revision that is set for a base; empty where none is."""
        return self.base_revision.get(base) or self.base_revision.get("", "")

    def tenants_of_models(self) -> ModelTenants:
        """Which tenant's keys may operate each model."""
        return ModelTenants(self.model_tenants, self.operators_tenant)

    def user_pseudonyms(self) -> UserPseudonyms:
        """How user ids are stored.

        Raises:
            CredentialsUnreadable: the file cannot be read, or its secret is too short.

        """
        if self.user_id_key_file is None:
            return AS_THEY_COME
        return UserPseudonyms(_secret_of(self.user_id_key_file, "RATCHET_USER_ID_KEY_FILE"))

    @model_validator(mode="after")
    def _check_host(self) -> Self:
        if self.profile == "local" and not self.local_open and not is_loopback(self.host):
            raise ValueError(
                f"RATCHET_HOST: {self.host} is reachable from other machines, and the local profile "
                "asks nobody for a key; set RATCHET_PROFILE=production, or RATCHET_LOCAL_OPEN=true "
                "on a network that you trust"
            )
        return self

    @property
    def readable_adapter_roots(self) -> tuple[str, ...]:
        """Roots below which an adapter may be fetched: where training publishes, and further ones."""
        return (self.adapters_uri, *self.adapter_roots)

    def engine_key(self) -> str:
        """The key for engines; empty where they ask for none.

        Raises:
            CredentialsUnreadable: the file cannot be read.

        """
        if self.engine_api_key_file is None:
            return ""
        return read_secret(self.engine_api_key_file, "RATCHET_ENGINE_API_KEY_FILE")

    def engine_headers(self) -> dict[str, str]:
        """What every request to an engine carries: the key. It names nobody who asked us.

        Raises:
            CredentialsUnreadable: the file cannot be read.

        """
        key = self.engine_key()
        return {"Authorization": f"Bearer {key}"} if key else {}

    def engine_tls(self) -> SSLContext:
        """How engines by https are recognised.

        Raises:
            CredentialsUnreadable: the file cannot be read.

        """
        return tls_context(self.engine_ca_file, "RATCHET_ENGINE_CA_FILE")

    @classmethod
    def load(cls) -> Self:
        """Read the environment; a wrong value ends the process with a clear message."""
        try:
            settings = cls()
            settings.engine_headers()
            settings.engine_tls()
            settings.redis_seal()
            settings.detector_headers()
        except CredentialsUnreadable as error:
            print(error, file=sys.stderr)
            raise SystemExit(EXIT_CONFIGURATION) from None
        except ValidationError as error:
            for line in explain(error, str(cls.model_config.get("env_prefix", "RATCHET_"))):
                print(line, file=sys.stderr)
            raise SystemExit(EXIT_CONFIGURATION) from None
        return settings


def explain(error: ValidationError, prefix: str = "RATCHET_") -> list[str]:
    """One line for each wrong variable: its name, what is wrong, and what was given."""
    lines: list[str] = []
    for item in error.errors(include_url=False, include_context=False):
        message = item["msg"].removeprefix("Value error, ")
        if not item["loc"]:  # variables that do not fit each other; the message names them
            lines.append(message)
            continue
        name = str(item["loc"][0])
        variable = name if name.startswith("RATCHET_") else f"{prefix}{name.upper()}"
        given = os.environ.get(variable)
        shown = f"{given!r} given" if given is not None else "not set"
        lines.append(f"{variable}: {message} ({shown})")
    return lines


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def service_config(service: str) -> SettingsConfigDict:
    """The settings configuration of a service: its own prefix for its own fields."""
    return SettingsConfigDict(
        env_prefix=f"RATCHET_{service.upper()}_",
        extra="ignore",
        frozen=True,
        populate_by_name=True,
    )
