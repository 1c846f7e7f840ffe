"""Subject of an erasure: the pseudonym under which records about erasing a person name them.

Records of erasures are kept for ever as their proof, so they hold no user id.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256


@lru_cache(maxsize=65_536)
def subject_of(tenant: str, user_id: str) -> str:
    """SHA-256 of the NUL-joined tenant and user id in hex; empty where nobody is named."""
    return sha256(f"{tenant}\0{user_id}".encode()).hexdigest() if user_id else ""
