"""User pseudonyms: ids of users as they are stored, by a keyed hash (HMAC-SHA-256) of each tenant's.

The services that store or look up ids share the secret, so that a person has one id in
interactions, feedback and pairs. Without a secret ids are stored as they come.
"""

from __future__ import annotations

import hmac
from functools import lru_cache

MIN_SECRET = 32
"""Least length of the secret in bytes."""
PREFIX = "h-"
HEX_DIGITS = 32
"""128 bits: two of a billion people share an id with a chance of 10^-21."""
CACHED = 65_536


class UserPseudonyms:
    """Gives the stored id of a tenant's user."""

    def __init__(self, secret: bytes = b"") -> None:
        self._secret = secret
        self._hashed = lru_cache(CACHED)(self._hash)

    def of(self, tenant: str, user_id: str) -> str:
        """The id under which a user is stored; empty where nobody is named."""
        return self._hashed(tenant, user_id) if self._secret and user_id else user_id

    def _hash(self, tenant: str, user_id: str) -> str:
        tenant_key = hmac.digest(self._secret, tenant.encode(), "sha256")
        return PREFIX + hmac.digest(tenant_key, user_id.encode(), "sha256").hex()[:HEX_DIGITS]


AS_THEY_COME = UserPseudonyms()
"""No secret: ids are stored as they come."""
