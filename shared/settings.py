"""Settings from the environment: `RATCHET_…` variables, read once in a service's `__main__`."""

from __future__ import annotations

import ipaddress
import os
import sys
from pathlib import Path
from ssl import SSLContext
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.credentials import CredentialsUnreadable, read_secret, tls_context
from shared.detector_settings import DetectorSettings
from shared.pseudonyms import AS_THEY_COME, MIN_SECRET, UserPseudonyms
from shared.seal import UNSEALED, Seal
from shared.setting_fields import shared_name, split_list
from shared.tenants import DEFAULT_TENANT, ModelTenants, check_tenants

EXIT_CONFIGURATION = 2
"""Exit status of a service whose settings are wrong."""


def _secrets_of(path: Path, variable: str) -> tuple[bytes, ...]:
    secrets = tuple(line.encode() for line in read_secret(path, variable).splitlines())
    if any(len(one) < MIN_SECRET for one in secrets):
        raise CredentialsUnreadable(
            f"{variable}: a secret has less than {MIN_SECRET} bytes; one a line, such as those of "
            "openssl rand -hex 32"
        )
    return secrets


def _secret_of(path: Path, variable: str) -> bytes:
    secret = read_secret(path, variable).encode()
    if len(secret) < MIN_SECRET:
        raise CredentialsUnreadable(
            f"{variable}: the secret has {len(secret)} bytes; at least {MIN_SECRET} are needed, "
            "such as those of openssl rand -hex 32"
        )
    return secret


class KafkaSettings(BaseSettings):
    """How every client reaches Kafka: address, transport, credentials. No secret is in them.

    A combination that cannot work is refused here, so that a service does not start with it.
    """

    model_config = SettingsConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    profile: Literal["local", "production"] = Field(
        default="local", validation_alias=shared_name("profile")
    )
    kafka_bootstrap: str = Field(
        default="127.0.0.1:9092", validation_alias=shared_name("kafka_bootstrap")
    )
    kafka_security_protocol: Literal["", "PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="",
        validation_alias=shared_name("kafka_security_protocol"),
        description="empty: PLAINTEXT in the local profile, else to be set",
    )
    kafka_sasl_mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = (
        Field(default="", validation_alias=shared_name("kafka_sasl_mechanism"))
    )
    kafka_username: str = Field(default="", validation_alias=shared_name("kafka_username"))
    kafka_password_file: Path | None = Field(
        default=None, validation_alias=shared_name("kafka_password_file")
    )
    kafka_token_file: Path | None = Field(
        default=None,
        validation_alias=shared_name("kafka_token_file"),
        description="the token of OAUTHBEARER, read for each new connection",
    )
    kafka_ca_file: Path | None = Field(
        default=None,
        validation_alias=shared_name("kafka_ca_file"),
        description="PEM; none: the system's authorities",
    )
    kafka_cert_file: Path | None = Field(
        default=None, validation_alias=shared_name("kafka_cert_file")
    )
    kafka_key_file: Path | None = Field(
        default=None, validation_alias=shared_name("kafka_key_file")
    )
    text_key_file: Path | None = Field(
        default=None,
        validation_alias=shared_name("text_key_file"),
        description="file with the secrets under which people's texts are encrypted in topics and "
        "rows, one a line: the first wraps keys, all unwrap; none: texts are stored as they come",
    )

    def text_secrets(self) -> tuple[bytes, ...]:
        """The secrets that wrap the keys of people's texts; none: texts are not encrypted.

        Raises:
            CredentialsUnreadable: the file cannot be read, or a secret is too short.

        """
        if self.text_key_file is None:
            return ()
        return _secrets_of(self.text_key_file, "RATCHET_TEXT_KEY_FILE")

    @model_validator(mode="after")
    def _check_kafka(self) -> Self:
        protocol, mechanism = self.kafka_security_protocol, self.kafka_sasl_mechanism
        if not protocol and self.profile != "local":
            raise ValueError(
                "RATCHET_KAFKA_SECURITY_PROTOCOL: must be set outside the local profile; allowed: "
                "SASL_SSL, SSL, SASL_PLAINTEXT, PLAINTEXT (the last two send records unencrypted)"
            )
        tls, sasl = protocol.endswith("SSL"), protocol.startswith("SASL")
        password = sasl and mechanism != "OAUTHBEARER"
        _check_needed("RATCHET_KAFKA_SASL_MECHANISM", mechanism, sasl, f"with {protocol}")
        _check_needed("RATCHET_KAFKA_USERNAME", self.kafka_username, password, f"with {mechanism}")
        _check_needed(
            "RATCHET_KAFKA_PASSWORD_FILE", self.kafka_password_file, password, f"with {mechanism}"
        )
        _check_needed(
            "RATCHET_KAFKA_TOKEN_FILE", self.kafka_token_file, sasl and not password, "OAUTHBEARER"
        )
        for name in ("ca", "cert", "key"):
            variable, path = f"kafka_{name}_file", getattr(self, f"kafka_{name}_file")
            if path and not tls:
                raise ValueError(
                    f"RATCHET_{variable.upper()}: has no use with {protocol or 'PLAINTEXT'}; "
                    "set RATCHET_KAFKA_SECURITY_PROTOCOL to SSL or SASL_SSL"
                )
        if self.kafka_key_file and not self.kafka_cert_file:
            raise ValueError("RATCHET_KAFKA_CERT_FILE: must be set beside RATCHET_KAFKA_KEY_FILE")
        return self


class RedisSettings(BaseSettings):
    """How every client reaches Redis."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0", validation_alias=shared_name("redis_url"), repr=False
    )
    redis_username: str = Field(default="", validation_alias=shared_name("redis_username"))
    redis_password_file: Path | None = Field(
        default=None, validation_alias=shared_name("redis_password_file")
    )
    redis_ca_file: Path | None = Field(
        default=None,
        validation_alias=shared_name("redis_ca_file"),
        description="PEM of the authorities; none: the system's",
    )
    redis_signing_file: Path | None = Field(
        default=None,
        validation_alias=shared_name("redis_signing_file"),
        description="file with the secrets that sign what is kept in Redis, one a line: the first "
        "signs, all verify; none: it is not signed",
    )

    def redis_seal(self) -> Seal:
        """How what is kept in Redis is signed.

        Raises:
            CredentialsUnreadable: the file cannot be read, or a secret is too short.

        """
        if self.redis_signing_file is None:
            return UNSEALED
        return Seal(*_secrets_of(self.redis_signing_file, "RATCHET_REDIS_SIGNING_FILE"))

    @property
    def redis_address(self) -> str:
        """The URL without a password, to be shown."""
        scheme, _, rest = self.redis_url.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"

    @model_validator(mode="after")
    def _check_redis(self) -> Self:
        scheme, _, rest = self.redis_url.partition("://")
        if scheme not in ("redis", "rediss", "unix"):
            raise ValueError("RATCHET_REDIS_URL: must begin with redis://, rediss:// or unix://")
        if self.redis_ca_file and scheme != "rediss":
            raise ValueError("RATCHET_REDIS_CA_FILE: is for TLS; write rediss:// in the URL")
        if self.redis_username and not self.redis_password_file:
            raise ValueError("RATCHET_REDIS_PASSWORD_FILE: must be set beside the username")
        if self.redis_password_file and "@" in rest:
            raise ValueError(
                "RATCHET_REDIS_URL: must hold no user where RATCHET_REDIS_PASSWORD_FILE is set"
            )
        return self


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
    base_revision: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9._/-]{0,200}$",
        validation_alias=shared_name("base_revision"),
        description="branch, tag or commit of the hub at which the base is trained on and served; "
        "empty: main",
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


def _check_needed(variable: str, value: object, needed: bool, reason: str) -> None:
    """Refuse a variable that is missing where it is needed, or given where it would be ignored."""
    if needed and not value:
        raise ValueError(f"{variable}: must be set ({reason})")
    if value and not needed:
        raise ValueError(f"{variable}: has no use with these settings; see docs/security.md")


def service_config(service: str) -> SettingsConfigDict:
    """The settings configuration of a service: its own prefix for its own fields."""
    return SettingsConfigDict(
        env_prefix=f"RATCHET_{service.upper()}_",
        extra="ignore",
        frozen=True,
        populate_by_name=True,
    )
