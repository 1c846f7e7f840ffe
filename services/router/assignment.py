"""Sticky assignment of requests to arms: a pure hash of rollout, tenant and key (design section 7).

The bucket depends on the rollout id, so every rollout draws its users anew; it does not depend
on the weight, so a user who is on the candidate stays there while the weight rises.
"""

from __future__ import annotations

from enum import StrEnum
from hashlib import blake2b

from shared.contracts.events.base import WEIGHT_SCALE

HOLDOUT_SALT = "holdout:"
"""No rollout's id has a colon."""


class KeyKind(StrEnum):
    """What identifies the one who asks. A trace is unique, so it sticks to nothing."""

    user = "user"
    session = "session"
    trace = "trace"


def digest(rollout_id: str, tenant: str, kind: str, key: str, *, secret: bytes = b"") -> int:
    """BLAKE2b-64 (RFC 7693) of the NUL-joined UTF-8 of the four, as a big-endian integer.

    Keyed with `secret` (at most 64 bytes): who does not know it cannot compute an arm, nor make up
    users for one.
    """
    joined = f"{rollout_id}\x00{tenant}\x00{kind}\x00{key}".encode()
    return int.from_bytes(blake2b(joined, digest_size=8, key=secret).digest(), "big")


def bucket(rollout_id: str, tenant: str, kind: str, key: str) -> int:
    """The key's place in this rollout, from 0 to 9999."""
    return digest(rollout_id, tenant, kind, key) % WEIGHT_SCALE


def holdout_bucket(model: str, tenant: str, kind: str, key: str) -> int:
    """The key's place for the holdout: the same for ever, and independent of every rollout's."""
    return bucket(f"{HOLDOUT_SALT}{model}", tenant, kind, key)


def on_candidate(place: int, weight: int) -> bool:
    """True where a bucket (or a digest) falls under the candidate's weight in basis points."""
    return place % WEIGHT_SCALE < weight


def key_of(user: str, session: str, trace_id: str) -> tuple[KeyKind, str]:
    """The assignment key: the user, else the session, else the trace."""
    if user:
        return KeyKind.user, user
    if session:
        return KeyKind.session, session
    return KeyKind.trace, trace_id
