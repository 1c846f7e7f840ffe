"""A stack on a broker with SASL_SSL and ACLs and on a Redis with TLS and users; the engine is a stub."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.local.stack import Stack
from tests.support.crowd import PROCESSES
from tests.support.secure_kafka import SecureKafka, password_of

SERVICES = {
    "router": "router",
    "feedback": "feedback",
    "intake": "feedback",
    "aggregator": "aggregator",
    "rollout": "rollout",
    "training": "training",
}
"""The principal, without its prefix, that each process logs in as."""
PREFIX = "ratchet-"
REDIS_USERS = ("router", "feedback", "rollout", "cli")
REDIS_RIGHTS = "~ratchet:* &ratchet:* +@all -@admin -@dangerous +info"
"""Keys and channels of Ratchet, and no command that governs the server."""


def secure_stack(
    run_dir: Path,
    broker: SecureKafka,
    *,
    tenants: str,
    further: Mapping[str, Mapping[str, str]] | None = None,
) -> Stack:
    """Every service as a principal of its own, not entered yet; `further` variables by process."""
    redis = _redis(run_dir, broker)
    processes: dict[str, dict[str, Any]] = {**PROCESSES, "redis": redis}
    for process, user in SERVICES.items():
        processes[process] = {
            "after": ["redis", "prometheus"],
            "env": {
                **PROCESSES.get(process, {}).get("env", {}),
                **secure_variables(run_dir, broker, user),
                **(further or {}).get(process, {}),
            },
        }
    return Stack(
        run_dir,
        services=["engine", *SERVICES],
        processes=processes,
        env={"RATCHET_TENANTS": tenants},
        ports="free",
        scrape_interval="1s",
        say=lambda _: None,
    )


def secure_variables(run_dir: Path, broker: SecureKafka, user: str) -> dict[str, str]:
    """The environment by which `user` logs in to both; ports are yet to be filled in."""
    variables = broker.variables(f"{PREFIX}{user}")
    if user not in REDIS_USERS:
        return variables
    return {
        **variables,
        "RATCHET_REDIS_URL": "rediss://${host.redis}/0",
        "RATCHET_REDIS_USERNAME": user,
        "RATCHET_REDIS_PASSWORD_FILE": str(_secret(run_dir, f"redis-{user}", password_of(user))),
        "RATCHET_REDIS_CA_FILE": str(broker.ca_file),
        "RATCHET_REDIS_SIGNING_FILE": str(run_dir / "signing.secret"),
    }


def _redis(run_dir: Path, broker: SecureKafka) -> dict[str, Any]:
    """The stack's Redis with the broker's certificate, which is for loopback."""
    users = [f"user {one} on >{password_of(one)} {REDIS_RIGHTS}" for one in REDIS_USERS]
    conf = run_dir / "secure-redis.conf"
    conf.write_text("\n".join(["user default off", *users, ""]))
    _secret(run_dir, "signing", secrets.token_hex(32))
    command = [
        "redis-server", str(conf), "--save", "", "--bind", "127.0.0.1",
        "--port", "0", "--tls-port", "${port.redis}", "--tls-auth-clients", "no",
        "--tls-cert-file", str(broker.directory / "broker.crt"),
        "--tls-key-file", str(broker.directory / "broker.key"),
    ]  # fmt: skip
    return {"command": command, "ready": {"redis": "", "tcp": "redis", "timeout_s": 20}}


def _secret(run_dir: Path, name: str, text: str) -> Path:
    path = run_dir / f"{name}.secret"
    path.write_text(f"{text}\n")
    return path
