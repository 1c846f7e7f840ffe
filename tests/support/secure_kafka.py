"""A real broker with TLS, SASL and an authorizer; its certificates are made for it by openssl."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Int8, Int16, Int32, Schema, String

from deploy.local.ports import free_ports
from deploy.local.processes import ROOT
from shared.kafka.security import KafkaConnection

ADMIN = "admin"
SCRAM_USER = "scrammed"
START_S = 120.0
_JAVA = ("java", "-XX:TieredStopAtLevel=1", "-Xmx400m", "-cp", f"{ROOT}/.kafka/libs/*")


class SecureKafka:
    """One node: `bootstrap` asks for SASL over TLS, `mutual` for a client's certificate.

    `users` log in by PLAIN, SCRAM_USER by SCRAM-SHA-512; a user's password is its name reversed.
    Nobody but ADMIN may do anything that no ACL allows.
    """

    def __init__(self, directory: Path, users: Iterable[str]) -> None:
        self.directory = directory
        self._users = {ADMIN, *users}
        ports = free_ports(["sasl", "mutual", "controller"])
        self.bootstrap = f"localhost:{ports['sasl']}"
        self.mutual = f"localhost:{ports['mutual']}"
        self._controller = f"localhost:{ports['controller']}"
        self.ca_file = directory / "ca.pem"
        self._process: subprocess.Popen[bytes] | None = None

    def variables(self, user: str, mechanism: str = "PLAIN") -> dict[str, str]:
        """The environment of a client that logs in as `user`."""
        password = self.directory / f"{user}.password"
        password.write_text(f"{password_of(user)}\n")
        return {
            "RATCHET_KAFKA_BOOTSTRAP": self.bootstrap,
            "RATCHET_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "RATCHET_KAFKA_SASL_MECHANISM": mechanism,
            "RATCHET_KAFKA_USERNAME": user,
            "RATCHET_KAFKA_PASSWORD_FILE": str(password),
            "RATCHET_KAFKA_CA_FILE": str(self.ca_file),
        }

    def connection(self, user: str, mechanism: str = "PLAIN") -> KafkaConnection:
        """A client's connection as `user`."""
        variables = self.variables(user, mechanism)
        return KafkaConnection(
            self.bootstrap,
            protocol="SASL_SSL",
            mechanism=mechanism,
            username=user,
            password_file=Path(variables["RATCHET_KAFKA_PASSWORD_FILE"]),
            ca_file=self.ca_file,
        )

    def by_certificate(self) -> KafkaConnection:
        """A client's connection by a certificate that the brokers' authority signed."""
        return KafkaConnection(
            self.mutual,
            protocol="SSL",
            ca_file=self.ca_file,
            cert_file=self.directory / "client.pem",
        )

    def __enter__(self) -> Self:
        _certificates(self.directory)
        properties = self.directory / "server.properties"
        properties.write_text("".join(f"{k}={v}\n" for k, v in self._properties().items()))
        format_ = [
            *_JAVA,
            "kafka.tools.StorageTool", "format", "--standalone",
            "--cluster-id", "cmF0Y2hldC1sb2NhbC0wMg", "--config", str(properties),
            "--add-scram", f"SCRAM-SHA-512=[name={SCRAM_USER},password={password_of(SCRAM_USER)}]",
        ]  # fmt: skip
        subprocess.run(format_, check=True, capture_output=True)
        with (self.directory / "kafka.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*_JAVA, "kafka.Kafka", str(properties)], stdout=log, stderr=log
            )
        self._wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        log = self.directory / "kafka.log"
        while "Kafka Server started" not in log.read_text():
            assert self._process is not None
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                raise AssertionError(log.read_text()[-4000:])
            time.sleep(0.2)

    def _properties(self) -> Mapping[str, object]:
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        users = " ".join(f'user_{name}="{password_of(name)}"' for name in sorted(self._users))
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required"
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.bootstrap.servers": self._controller,
            "controller.listener.names": "CONTROLLER",
            "listeners": (
                f"SASL_SSL://{self.bootstrap},SSL://{self.mutual},CONTROLLER://{self._controller}"
            ),
            "listener.security.protocol.map": ("SASL_SSL:SASL_SSL,SSL:SSL,CONTROLLER:PLAINTEXT"),
            "inter.broker.listener.name": "SASL_SSL",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "listener.name.sasl_ssl.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": (
                f'{plain} username="{ADMIN}" password="{password_of(ADMIN)}" {users};'
            ),
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{scram};",
            "listener.name.ssl.ssl.client.auth": "required",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self.directory / "broker.pem",
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.ca_file,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # The controller's listener, on loopback, knows nobody by name.
            "super.users": f"User:{ADMIN};User:ANONYMOUS",
            "log.dirs": self.directory / "data",
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 2,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "log.cleaner.dedupe.buffer.size": 33_554_432,
        }


def password_of(user: str) -> str:
    """A user's password."""
    return user[::-1] + "-secret"


def _certificates(directory: Path) -> None:
    """An authority, and what it signed for a broker on localhost and for a client."""
    directory.mkdir(parents=True, exist_ok=True)

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    openssl(*new, "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem")
    for name, alternative in (("broker", "DNS:localhost,IP:127.0.0.1"), ("client", "DNS:client")):
        openssl(
            *new, "-subj", f"/CN={name}", "-addext", f"subjectAltName={alternative}",
            "-addext", "basicConstraints=critical,CA:FALSE",
            "-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", f"{name}.key", "-out", f"{name}.crt",
        )  # fmt: skip
        parts = [(directory / f"{name}{suffix}").read_text() for suffix in (".key", ".crt")]
        (directory / f"{name}.pem").write_text("".join(parts))


class Rule(NamedTuple):
    """One creation as CreateAcls of the protocol has it: codes of Kafka's own enums."""

    resource_type: int
    resource_name: str
    pattern_type: int
    principal: str
    host: str
    operation: int
    permission: int


class _CreateAclsResponse(Response):
    API_KEY = 30  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    API_VERSION = 1  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("results", Array(("error_code", Int16), ("error_message", String("utf-8")))),
    )


class _CreateAclsV1(RequestStruct):
    API_KEY = 30
    API_VERSION = 1
    RESPONSE_TYPE = _CreateAclsResponse
    SCHEMA = Schema(
        (
            "creations",
            Array(
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
                ("pattern_type", Int8),
                ("principal", String("utf-8")),
                ("host", String("utf-8")),
                ("operation", Int8),
                ("permission", Int8),
            ),
        )
    )


class _CreateAcls(Request[_CreateAclsV1]):
    API_KEY = 30

    def __init__(self, rules: list[Rule]) -> None:
        self._rules = rules

    def build(self, request_struct_class: type[_CreateAclsV1]) -> _CreateAclsV1:
        return request_struct_class(self._rules)


_RESOURCES = {"topic": 2, "group": 3, "cluster": 4}
_PATTERNS = {"literal": 3, "prefixed": 4}
_OPERATIONS = {
    "Read": 3, "Write": 4, "Create": 5, "Alter": 7, "Describe": 8,
    "DescribeConfigs": 10, "IdempotentWrite": 12,
}  # fmt: skip
_ALLOW = 3


async def allow(connection: KafkaConnection, acls: Iterable[Mapping[str, str]]) -> None:
    """Create ACLs as `ratchet kafka acls --json` lists them."""
    rules = [
        Rule(
            _RESOURCES[one["resource"]],
            one["name"],
            _PATTERNS[one["pattern"]],
            one["principal"],
            "*",
            _OPERATIONS[one["operation"]],
            _ALLOW,
        )
        for one in acls
    ]
    admin = AIOKafkaAdminClient(**connection.client_arguments())
    await connection.start(admin)
    try:
        answer: Any = await admin._send_to_controller(_CreateAcls(rules))
    finally:
        await admin.close()
    assert len(answer.results) == len(rules)
    refused = [message for code, message in answer.results if code]
    assert not refused, refused
