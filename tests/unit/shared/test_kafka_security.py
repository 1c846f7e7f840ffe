"""Which connections to Kafka are refused at the start, and what clients are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shared.connection_settings import KafkaSettings
from shared.kafka.security import KafkaConnection, KafkaCredentialsUnreadable, TokenFile
from tests.support.command import ratchet_here

SECRET = "correct horse battery"


def load(monkeypatch: pytest.MonkeyPatch, **variables: str) -> KafkaConnection:
    for name, value in variables.items():
        monkeypatch.setenv(f"RATCHET_{name}", value)
    return KafkaConnection.of(KafkaSettings())


SASL = {
    "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
    "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
    "KAFKA_USERNAME": "router",
    "KAFKA_PASSWORD_FILE": "/run/secrets/kafka/password",
}


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"PROFILE": "production"}, "KAFKA_SECURITY_PROTOCOL: must be set"),
        ({"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}, "KAFKA_SASL_MECHANISM: must be set"),
        (SASL | {"KAFKA_USERNAME": ""}, "KAFKA_USERNAME: must be set"),
        (SASL | {"KAFKA_SASL_MECHANISM": "OAUTHBEARER"}, "KAFKA_USERNAME: has no use"),
        (SASL | {"KAFKA_TOKEN_FILE": "/token"}, "KAFKA_TOKEN_FILE: has no use"),
        (SASL | {"KAFKA_CA_FILE": "/ca.pem"}, "KAFKA_CA_FILE: has no use with SASL_PLAINTEXT"),
        (SASL | {"KAFKA_SECURITY_PROTOCOL": "SSL"}, "KAFKA_SASL_MECHANISM: has no use"),
        (SASL | {"KAFKA_SECURITY_PROTOCOL": ""}, "KAFKA_SASL_MECHANISM: has no use"),
        (
            {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_KEY_FILE": "/key.pem"},
            "KAFKA_CERT_FILE: must be set",
        ),
        (
            {
                "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
                "KAFKA_SASL_MECHANISM": "OAUTHBEARER",
            },
            "KAFKA_TOKEN_FILE: must be set",
        ),
        (SASL | {"KAFKA_SASL_MECHANISM": "GSSAPI"}, "KAFKA_SASL_MECHANISM: Input should be"),
    ],
)
def test_a_combination_that_cannot_work_is_refused_with_the_variables_name(
    variables: dict[str, str],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"RATCHET_{name}", value)
    ran = ratchet_here("topics", "diff", monkeypatch=monkeypatch, capsys=capsys)
    assert ran.status == 2
    assert f"RATCHET_{named}" in ran.err


def test_plaintext_outside_the_local_profile_can_be_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = load(monkeypatch, PROFILE="production", KAFKA_SECURITY_PROTOCOL="PLAINTEXT")
    assert found.security_arguments() == {"security_protocol": "PLAINTEXT"}


def test_the_password_is_read_anew_and_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "password"
    path.write_text(f"{SECRET}\n")
    found = load(monkeypatch, **SASL | {"KAFKA_PASSWORD_FILE": str(path)})
    given: dict[str, Any] = found.client_arguments()
    assert given["sasl_plain_password"] == SECRET
    assert given["sasl_mechanism"] == "SCRAM-SHA-512"
    assert SECRET not in repr(found)
    path.write_text("another")
    assert found.client_arguments()["sasl_plain_password"] == "another"
    path.write_bytes(b"\xff" + SECRET.encode())
    with pytest.raises(KafkaCredentialsUnreadable, match="RATCHET_KAFKA_PASSWORD_FILE") as raised:
        found.client_arguments()
    assert SECRET not in str(raised.value)
    assert "xff" not in str(raised.value)


async def test_a_token_is_read_for_each_connection(tmp_path: Path) -> None:
    path = tmp_path / "token"
    provider = TokenFile(path)
    with pytest.raises(KafkaCredentialsUnreadable, match="RATCHET_KAFKA_TOKEN_FILE"):
        await provider.token()
    path.write_text("first\n")
    assert await provider.token() == "first"
    path.write_text("second\n")
    assert await provider.token() == "second"


def test_an_authority_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = KafkaConnection("x:1", protocol="SSL", ca_file=tmp_path / "ca.pem")
    with pytest.raises(KafkaCredentialsUnreadable, match="RATCHET_KAFKA_CA_FILE"):
        missing.client_arguments()
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(KafkaCredentialsUnreadable, match="RATCHET_KAFKA_CA_FILE"):
        missing.client_arguments()
