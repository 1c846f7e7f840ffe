"""API keys: who may do what for which tenant. Keys are 256 random bits, kept as SHA-256 only."""

from __future__ import annotations

import hashlib
import secrets
from typing import NamedTuple

from shared.contracts.events.api_keys import ApiKeyIssued, Permission
from shared.errors import RatchetError

KEY_PREFIX = "rk_"
KEY_BYTES = 32


class ApiKey(NamedTuple):
    """What a caller may do."""

    key_id: str
    tenant: str
    scopes: frozenset[Permission]
    explicit_versions: bool


LOCAL_KEY = ApiKey("local", "default", frozenset(Permission), explicit_versions=True)
"""Everybody's key in the local profile."""


class Unauthenticated(RatchetError):
    """No API key, or an unknown one."""

    status = 401
    code = "unauthenticated"
    title = "API key needed"

    def __init__(self) -> None:
        super().__init__(
            "no or an unknown API key; send `Authorization: Bearer <key>` with a key that was issued"
        )


class Forbidden(RatchetError):
    """The key is known and does not have the scope."""

    status = 403
    code = "forbidden"
    title = "Not allowed"

    def __init__(self, scope: Permission) -> None:
        super().__init__(f"the key lacks the scope {scope}; have one issued with it")
        self.scope = scope


class KeyRing:
    """All keys: the fold of `api-keys.v1`. With `required=False` everybody has LOCAL_KEY."""

    def __init__(self, *, required: bool) -> None:
        self._required = required
        self._by_id: dict[str, ApiKeyIssued] = {}
        self._by_hash: dict[str, ApiKey] = {}

    def apply(self, key_id: str, value: bytes | None) -> None:
        """Fold one record of the topic.

        Raises:
            pydantic.ValidationError: the value is no ApiKeyIssued.

        """
        old = self._by_id.pop(key_id, None)
        if old is not None:
            self._by_hash.pop(old.sha256, None)
        if value is None:
            return
        issued = ApiKeyIssued.model_validate_json(value)
        self._by_id[key_id] = issued
        self._by_hash[issued.sha256] = ApiKey(
            key_id, issued.tenant, frozenset(issued.scopes), issued.explicit_versions
        )

    def authenticate(self, authorization: str | None, scope: Permission) -> ApiKey:
        """Who sent an `Authorization` header, if they may do `scope`.

        Raises:
            Unauthenticated: no or an unknown key.
            Forbidden: the key lacks the scope.

        """
        if not self._required:
            return LOCAL_KEY
        kind, _, key = (authorization or "").partition(" ")
        found = self._by_hash.get(hash_key(key.strip())) if kind.lower() == "bearer" else None
        if found is None:
            raise Unauthenticated
        if scope not in found.scopes:
            raise Forbidden(scope)
        return found


def new_key() -> str:
    """A key of 256 random bits; show it once and keep only its hash."""
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def hash_key(key: str) -> str:
    """SHA-256 of a key in hex. A random key of 256 bits needs no slower hash."""
    return hashlib.sha256(key.encode()).hexdigest()
