"""Connection to Kafka: the one place that gives clients their address, TLS and SASL."""

# pyright: basic, reportMissingTypeStubs=false
# aiokafka has no types.
from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer
from aiokafka.abc import AbstractTokenProvider
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import KafkaConnectionError, KafkaError

from shared import credentials
from shared.connection_settings import KafkaSettings
from shared.credentials import read_secret, tls_context

CHECK_TIMEOUT_MS = 5_000


class KafkaCredentialsUnreadable(KafkaError):
    """As `shared.credentials` has it, and handled like brokers that are away."""


class Client(Protocol):
    """aiokafka's producer, consumer or admin client."""

    async def start(self) -> None:
        """Connect."""
        ...


async def stop_consumer(consumer: AIOKafkaConsumer | None, timeout_s: float) -> None:
    """Stop a consumer where there is one; brokers that are away do not hold its owner up."""
    if consumer is None:
        return
    with contextlib.suppress(TimeoutError, KafkaError):
        async with asyncio.timeout(timeout_s):
            await consumer.stop()


@dataclass(frozen=True, slots=True)
class KafkaConnection:
    """Where the brokers are and how a client proves who it is.

    It holds paths, never secrets: files are read when a client is made, so that a certificate or
    password that was replaced is used by the next one. A token is read for each connection.
    """

    bootstrap: str
    protocol: str = "PLAINTEXT"
    mechanism: str = ""
    username: str = ""
    password_file: Path | None = None
    token_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @classmethod
    def of(cls, settings: KafkaSettings) -> KafkaConnection:
        """The connection that the settings, which were checked, describe."""
        return cls(
            bootstrap=settings.kafka_bootstrap,
            protocol=settings.kafka_security_protocol or "PLAINTEXT",
            mechanism=settings.kafka_sasl_mechanism,
            username=settings.kafka_username,
            password_file=settings.kafka_password_file,
            token_file=settings.kafka_token_file,
            ca_file=settings.kafka_ca_file,
            cert_file=settings.kafka_cert_file,
            key_file=settings.kafka_key_file,
        )

    def client_arguments(self) -> dict[str, Any]:
        """Keyword arguments of any aiokafka client.

        Raises:
            KafkaCredentialsUnreadable: a file is missing or holds nothing of use.

        """
        return {"bootstrap_servers": self.bootstrap, **self.security_arguments()}

    def security_arguments(self) -> dict[str, Any]:
        """The client arguments without the address.

        Raises:
            KafkaCredentialsUnreadable: a file is missing or holds nothing of use.

        """
        arguments: dict[str, Any] = {"security_protocol": self.protocol}
        if self.protocol.endswith("SSL"):
            arguments["ssl_context"] = self._ssl_context()
        if self.token_file:
            arguments |= {
                "sasl_mechanism": self.mechanism,
                "sasl_oauth_token_provider": TokenFile(self.token_file),
            }
        elif self.password_file:
            arguments |= {
                "sasl_mechanism": self.mechanism,
                "sasl_plain_username": self.username,
                "sasl_plain_password": _secret(self.password_file, "RATCHET_KAFKA_PASSWORD_FILE"),
            }
        return arguments

    async def start(self, client: Client) -> None:
        """Start a client made with this connection's arguments.

        aiokafka only says that it found no broker, and keeps to its log why. So a connection that
        failed is tried once more by hand, for the broker's own words.

        Raises:
            KafkaError: no broker was reached, or none let the client in; the message says which.

        """
        try:
            await client.start()
        except KafkaConnectionError:
            await self.check()
            raise

    async def check(self) -> None:
        """Connect to one broker of the bootstrap list and log in there.

        Raises:
            KafkaError: none was reached, or none let the client in; the message says why.

        """
        arguments = self.security_arguments()
        reason = "no address"
        for host, port, _ in collect_hosts(self.bootstrap):
            try:
                connection = await create_conn(
                    host, port, request_timeout_ms=CHECK_TIMEOUT_MS, **arguments
                )
            except (OSError, KafkaError, TimeoutError) as error:
                reason = f"{host}:{port}: {str(error) or 'timed out'}"
            else:
                closed = connection.close()
                if closed is not None:
                    # TLS takes a round trip to close; cut short it leaves its socket behind.
                    await asyncio.wait((closed,), timeout=CHECK_TIMEOUT_MS / 1000)
                return
        raise KafkaConnectionError(reason)

    def _ssl_context(self) -> ssl.SSLContext:
        try:
            context = tls_context(self.ca_file, "RATCHET_KAFKA_CA_FILE")
        except credentials.CredentialsUnreadable as error:
            raise KafkaCredentialsUnreadable(str(error)) from error
        if self.cert_file:
            try:
                context.load_cert_chain(self.cert_file, self.key_file)
            except OSError as error:
                raise KafkaCredentialsUnreadable(
                    f"RATCHET_KAFKA_CERT_FILE, RATCHET_KAFKA_KEY_FILE: {error}"
                ) from error
        return context


class TokenFile(AbstractTokenProvider):
    """OAUTHBEARER token from a file that its issuer replaces before the token expires."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def token(self) -> str:
        """The token as it is in the file now.

        Raises:
            KafkaCredentialsUnreadable: the file is missing or empty.

        """
        return _secret(self._path, "RATCHET_KAFKA_TOKEN_FILE")


def _secret(path: Path, variable: str) -> str:
    try:
        return read_secret(path, variable)
    except credentials.CredentialsUnreadable as error:
        raise KafkaCredentialsUnreadable(str(error)) from None
