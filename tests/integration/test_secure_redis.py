"""Redis by TLS with an ACL user, and a Redis Cluster, each a real server of the test's own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from deploy.local.ports import free_ports
from services.cli.errors import Exit
from shared.connection_settings import RedisSettings
from shared.registry.connection import RedisCluster, connect_redis, refuse_cluster
from shared.registry.view import RoutingView
from tests.support.command import ratchet


@contextmanager
def running(directory: Path, *options: str) -> Iterator[None]:
    """A redis-server that answers on some port."""
    log = directory / "redis.log"
    server = subprocess.Popen(
        ["redis-server", *options, "--save", "", "--dir", str(directory), "--logfile", str(log)]
    )
    try:
        deadline = time.monotonic() + 60
        while not (log.exists() and "Ready to accept connections" in log.read_text()):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield
    finally:
        server.kill()
        server.wait(10)


async def test_redis_by_tls_lets_in_an_acl_user_whose_password_is_in_a_file(tmp_path: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key", "-out", "ca"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    port = free_ports(["redis"])["redis"]
    password = tmp_path / "password"
    password.write_text("wrong\n")
    settings = RedisSettings(
        redis_url=f"rediss://127.0.0.1:{port}/0",
        redis_ca_file=tmp_path / "ca",
        redis_username="ratchet",
        redis_password_file=password,
    )
    conf = tmp_path / "redis.conf"
    conf.write_text("user default off\nuser ratchet on >s3cret ~ratchet:* &ratchet:* +@all\n")
    tls = (
        "--tls-cert-file",
        str(tmp_path / "ca"),
        "--tls-key-file",
        str(tmp_path / "key"),
        "--tls-auth-clients",
        "no",
    )
    with running(tmp_path, str(conf), "--port", "0", "--tls-port", str(port), *tls):
        async with connect_redis(settings) as redis:
            with pytest.raises(RedisError) as raised:
                await RoutingView(redis).all()
            assert "wrong" not in str(raised.value).replace("WRONGPASS", "")
            password.write_text("s3cret\n")
            await refuse_cluster(redis)
            assert await RoutingView(redis).all() == []
        distrustful = settings.model_copy(update={"redis_ca_file": None})
        async with connect_redis(distrustful) as redis:
            with pytest.raises(RedisError, match="certificate verify failed"):
                await RoutingView(redis).all()


async def test_a_redis_cluster_is_refused(tmp_path: Path) -> None:
    port = free_ports(["redis"])["redis"]
    # Its bus would take port + 10000, which may be beyond the last.
    bus = free_ports(["bus"])["bus"]
    url = f"redis://127.0.0.1:{port}/0"
    cluster = ("--cluster-enabled", "yes", "--cluster-port", str(bus))
    with running(tmp_path, "--port", str(port), *cluster):
        async with connect_redis(RedisSettings(redis_url=url)) as redis:
            with pytest.raises(RedisCluster, match="RATCHET_REDIS_URL"):
                await refuse_cluster(redis)
        env = {"RATCHET_REDIS_URL": url}
        import os
        import sys

        started = subprocess.run(
            [sys.executable, "-m", "services.feedback"],
            env={**os.environ, **env, "RATCHET_KAFKA_BOOTSTRAP": "127.0.0.1:1"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert started.returncode == 1
        assert "RATCHET_REDIS_URL: the server runs as a Redis Cluster" in started.stderr


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"URL": "http://x"}, "RATCHET_REDIS_URL: must begin with"),
        ({"URL": "redis://:secret@x:1", "PASSWORD_FILE": "/p"}, "RATCHET_REDIS_URL: must hold no"),
        ({"CA_FILE": "/ca"}, "RATCHET_REDIS_CA_FILE: is for TLS"),
        ({"USERNAME": "u"}, "RATCHET_REDIS_PASSWORD_FILE: must be set"),
    ],
)
def test_a_combination_that_cannot_work_is_refused(variables: dict[str, str], said: str) -> None:
    env = {f"RATCHET_REDIS_{name}": value for name, value in variables.items()}
    ran = ratchet("topics", "diff", env=env)
    assert ran.status == Exit.usage
    assert said in ran.err
    assert "secret" not in ran.err
