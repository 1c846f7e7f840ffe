"""Settings of the command: service URLs from RATCHET_<SERVICE>_URL, else local ports.

The port is RATCHET_<SERVICE>_PORT, else RATCHET_PORT_BASE + the service's place in the local stack,
else the default: the rules of deploy/local, so that the command finds the stack that make up started.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from services.cli.errors import CliError, Exit
from shared.tenants import check_tenants

if TYPE_CHECKING:
    from shared.connection_settings import KafkaSettings, RedisSettings
    from shared.detector_settings import DetectorSettings

S = TypeVar("S", "KafkaSettings", "RedisSettings", "DetectorSettings")

DEFAULT_PORTS = {
    "router": 8080,
    "feedback": 8081,
    "intake": 8087,
    "rollout": 8082,
    "inference": 8084,
    "aggregator": 8085,
    "training": 8086,
}
DEFAULT_SERVER_PORTS = {"kafka": 9092, "redis": 6379, "prometheus": 9090}
PLACES = {
    "kafka": 0,
    "redis": 2,
    "prometheus": 4,
    "inference": 5,
    "router": 7,
    "feedback": 8,
    "rollout": 9,
    "aggregator": 10,
    "training": 11,
    "intake": 12,
}
"""Places of the ports in deploy/local/processes.yaml."""
MAX_PARTITIONS = 1000
LARGEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class CliSettings:
    """Settings from the environment, read once per command."""

    urls: Mapping[str, str]
    operations_ports: Mapping[str, int]
    """Of services whose /metrics have a port of their own."""
    kafka: KafkaSettings
    redis: RedisSettings
    detector: DetectorSettings
    tenants: tuple[str, ...]
    join_partitions: int
    replication: int
    api_key: str

    def url(self, service: str) -> str:
        """Base URL of a service, without a slash at its end."""
        return self.urls[service]

    def metrics_url(self, service: str) -> str:
        """The URL of a service's metrics, on its operations port where it has one."""
        url = urlsplit(self.urls[service])
        if port := self.operations_ports.get(service):
            host = f"[{url.hostname}]" if ":" in str(url.hostname) else url.hostname
            url = url._replace(netloc=f"{host}:{port}")
        return f"{url.geturl()}/metrics"


def url_variable(service: str) -> str:
    """The environment variable of a service's URL."""
    return f"RATCHET_{service.upper()}_URL"


def load_settings(environ: Mapping[str, str] | None = None) -> CliSettings:
    """Read the environment.

    Raises:
        CliError: a variable has a value that is not allowed.

    """
    given = os.environ if environ is None else environ
    return CliSettings(
        urls={service: _url(given, service) for service in DEFAULT_PORTS},
        operations_ports={service: _operations_port(given, service) for service in DEFAULT_PORTS},
        kafka=_kafka(given),
        redis=_redis(given),
        detector=_detector(given),
        tenants=_tenants(given),
        join_partitions=_number(given, "RATCHET_KAFKA_JOIN_PARTITIONS", 4, MAX_PARTITIONS),
        replication=_number(given, "RATCHET_KAFKA_REPLICATION", 1, 7),
        api_key=given.get("RATCHET_API_KEY", ""),
    )


def _url(given: Mapping[str, str], service: str) -> str:
    variable = url_variable(service)
    if url := given.get(variable, ""):
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise CliError(f"{variable} is {url!r}; allowed: http://host:port", Exit.usage)
        return url.rstrip("/")
    return f"http://127.0.0.1:{server_port(service, given)}"


def _operations_port(given: Mapping[str, str], service: str) -> int:
    variable = f"RATCHET_{service.upper()}_OPERATIONS_PORT"
    return 0 if given.get(variable, "0") == "0" else _number(given, variable, 1, LARGEST_PORT)


def server_port(name: str, given: Mapping[str, str]) -> int:
    """Port of a service or server on this host, by the local stack's rules.

    Raises:
        CliError: a variable has a value that is not allowed.

    """
    default = (DEFAULT_PORTS | DEFAULT_SERVER_PORTS)[name]
    if given.get("RATCHET_PORT_BASE"):
        base = _number(given, "RATCHET_PORT_BASE", default, LARGEST_PORT - max(PLACES.values()))
        default = base + PLACES[name]
    return _number(given, f"RATCHET_{name.upper()}_PORT", default, LARGEST_PORT)


def _kafka(given: Mapping[str, str]) -> KafkaSettings:
    from shared.connection_settings import KafkaSettings

    return _read(
        KafkaSettings, given, "RATCHET_KAFKA_BOOTSTRAP", f"127.0.0.1:{server_port('kafka', given)}"
    )


def _redis(given: Mapping[str, str]) -> RedisSettings:
    from shared.connection_settings import RedisSettings

    return _read(
        RedisSettings,
        given,
        "RATCHET_REDIS_URL",
        f"redis://127.0.0.1:{server_port('redis', given)}/0",
    )


def _detector(given: Mapping[str, str]) -> DetectorSettings:
    from shared.detector_settings import DetectorSettings

    return _read(DetectorSettings, given, "RATCHET_DETECTOR_URL", "")


def _read(kind: type[S], given: Mapping[str, str], variable: str, default: str) -> S:
    """One group of settings; where Kafka or Redis is follows from the stack's ports by default."""
    from pydantic import ValidationError

    from shared.settings import explain

    values: dict[str, Any] = {variable: default} | {name: one for name, one in given.items() if one}
    try:
        return kind(**values)
    except ValidationError as error:
        raise CliError("\n".join(explain(error)), Exit.usage) from None


def _tenants(given: Mapping[str, str]) -> tuple[str, ...]:
    parts = (part.strip() for part in given.get("RATCHET_TENANTS", "default").split(","))
    try:
        return check_tenants(part for part in parts if part)
    except ValueError as error:
        raise CliError(f"RATCHET_TENANTS: {error}", Exit.usage) from None


def _number(given: Mapping[str, str], variable: str, default: int, largest: int) -> int:
    text = given.get(variable, "") or str(default)
    if not text.isdigit() or not 1 <= int(text) <= largest:
        raise CliError(f"{variable} is {text!r}; allowed: 1 to {largest}", Exit.usage)
    return int(text)
