"""API keys: who may do what for which tenant. Keys are 256 random bits, kept as SHA-256 only."""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

from shared.contracts.events.api_keys import ApiKeyIssued, KeyLimits, Permission
from shared.errors import FieldError, RatchetError

KEY_PREFIX = "rk_"
KEY_BYTES = 32


NO_LIMITS = KeyLimits()


class ApiKey(NamedTuple):
    """What a caller may do."""

    key_id: str
    tenant: str
    scopes: frozenset[Permission]
    explicit_versions: bool
    judge_panel: bool = False
    limits: KeyLimits = NO_LIMITS
    expires_at: float = math.inf
    """Seconds since 1970."""
    own_trace_ids: bool = False
    approver: bool = False


LOCAL_KEY = ApiKey(
    "local",
    "default",
    frozenset(Permission),
    explicit_versions=True,
    judge_panel=True,
    own_trace_ids=True,
    approver=True,
)
"""Everybody's key in the local profile."""


class Unauthenticated(RatchetError):
    """No API key, or one that is unknown or expired."""

    status = 401
    code = "unauthenticated"
    title = "API key needed"

    def __init__(self) -> None:
        super().__init__(
            "no API key, or an unknown or expired one; send `Authorization: Bearer <key>` with a "
            "key that was issued"
        )


class Forbidden(RatchetError):
    """The key is known and does not have the scope."""

    status = 403
    code = "forbidden"
    title = "Not allowed"

    def __init__(self, scope: Permission) -> None:
        super().__init__(f"the key lacks the scope {scope}; have one issued with it")
        self.scope = scope


class OutOfScope(RatchetError):
    """The key may operate, and not this: it is another tenant's."""

    status = 403
    code = "forbidden"
    title = "Not allowed"

    def __init__(self, field: str, value: str, tenant: str) -> None:
        rule = f"{value or 'nothing'} is not of tenant {tenant}, whose key this is"
        remedy = "name one of your tenant's, or have a key of the operators' tenant do it"
        super().__init__(f"{field}: {rule}; {remedy}", [FieldError(field, rule, remedy)])


class KeysUnread(RatchetError):
    """The keys were not read yet, so that none can be told to be unknown."""

    status = 503
    code = "not_ready"
    title = "Not ready"
    retry_after_s = 1

    def __init__(self) -> None:
        super().__init__("the service has not read the API keys yet; try again")


class KeyRing:
    """All keys: the fold of `api-keys.v1`. With `required=False` everybody has LOCAL_KEY.

    While a follower has it not `whole`, an unknown key is KeysUnread: it may come further on.
    """

    def __init__(self, *, required: bool, now: Callable[[], float] = time.time) -> None:
        """`now` gives seconds since 1970."""
        self.whole = True
        self._required = required
        self._now = now
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
            key_id,
            issued.tenant,
            frozenset(issued.scopes),
            issued.explicit_versions,
            issued.judge_panel,
            issued.limits,
            issued.expires_at.timestamp() if issued.expires_at else math.inf,
            issued.own_trace_ids,
            issued.approver,
        )

    def authenticate(self, authorization: str | None, scope: Permission) -> ApiKey:
        """Who sent an `Authorization` header, if they may do `scope`.

        Raises:
            KeysUnread: the key is unknown so far.
            Unauthenticated: no key, or an unknown or expired one.
            Forbidden: the key lacks the scope.

        """
        if not self._required:
            return LOCAL_KEY
        kind, _, key = (authorization or "").partition(" ")
        found = self._by_hash.get(hash_key(key.strip())) if kind.lower() == "bearer" else None
        if found is None or found.expires_at <= self._now():
            raise Unauthenticated if self.whole else KeysUnread
        if scope not in found.scopes:
            raise Forbidden(scope)
        return found


def new_key() -> str:
    """A key of 256 random bits; show it once and keep only its hash."""
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def hash_key(key: str) -> str:
    """SHA-256 of a key in hex. A random key of 256 bits needs no slower hash."""
    return hashlib.sha256(key.encode()).hexdigest()
