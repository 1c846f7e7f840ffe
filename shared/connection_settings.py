"""Settings of connections to Kafka and Redis, which every client shares with every service."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.credentials import CredentialsUnreadable, read_secret
from shared.pseudonyms import MIN_SECRET
from shared.seal import UNSEALED, Seal
from shared.setting_fields import shared_name


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


def _secrets_of(path: Path, variable: str) -> tuple[bytes, ...]:
    secrets = tuple(line.encode() for line in read_secret(path, variable).splitlines())
    if any(len(one) < MIN_SECRET for one in secrets):
        raise CredentialsUnreadable(
            f"{variable}: a secret has less than {MIN_SECRET} bytes; one a line, such as those of "
            "openssl rand -hex 32"
        )
    return secrets


def _check_needed(variable: str, value: object, needed: bool, reason: str) -> None:
    """Refuse a variable that is missing where it is needed, or given where it would be ignored."""
    if needed and not value:
        raise ValueError(f"{variable}: must be set ({reason})")
    if value and not needed:
        raise ValueError(f"{variable}: has no use with these settings; see docs/security.md")
