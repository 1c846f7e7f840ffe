"""Connection to Redis: the one place that gives clients their address, TLS and ACL user."""

# pyright: basic
# The Redis client's own types are partly unknown.
from __future__ import annotations

from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.credentials import CredentialProvider
from redis.exceptions import RedisError

from shared.connection_settings import RedisSettings
from shared.credentials import CredentialsUnreadable, read_secret


class RedisCluster(Exception):
    """The server is part of a Redis Cluster, which Ratchet does not support."""

    def __init__(self) -> None:
        super().__init__(
            "RATCHET_REDIS_URL: the server runs as a Redis Cluster, which is not supported, for "
            "keys of one script would lie on different nodes; name a single server or a sentinel's "
            "primary"
        )


class FileCredentials(CredentialProvider):
    """ACL user whose password is read for each connection, so that it can be replaced."""

    def __init__(self, username: str, path: Path) -> None:
        self._username = username
        self._path = path

    def get_credentials(self) -> tuple[str, str]:
        """User and password as they are now. Raises RedisError where the file is unreadable."""
        try:
            password = read_secret(self._path, "RATCHET_REDIS_PASSWORD_FILE")
        except CredentialsUnreadable as error:
            raise RedisError(str(error)) from None
        return self._username or "default", password


def connect_redis(settings: RedisSettings, **options: Any) -> Redis:
    """A client; it connects when first used. `options` are the client's own, such as timeouts."""
    if settings.redis_ca_file:
        options["ssl_ca_certs"] = str(settings.redis_ca_file)
    if settings.redis_password_file:
        options["credential_provider"] = FileCredentials(
            settings.redis_username, settings.redis_password_file
        )
    return Redis.from_url(settings.redis_url, **options)


async def refuse_cluster(redis: Redis) -> None:
    """Ask the server, where it answers, whether it is part of a cluster.

    Raises:
        RedisCluster: it is.

    """
    try:
        found = await redis.info("cluster")
    except (RedisError, OSError):
        return  # away, or the ACL user may not ask; commands will say what is wrong
    if found.get("cluster_enabled"):
        raise RedisCluster
