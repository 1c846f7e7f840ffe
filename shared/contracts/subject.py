"""Subject of an erasure: the pseudonym under which records about erasing a person name them.

Records of erasures are kept for ever as their proof, so they hold no user id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any, cast


@lru_cache(maxsize=65_536)
def subject_of(tenant: str, user_id: str) -> str:
    """SHA-256 of the NUL-joined tenant and user id in hex; empty where nobody is named."""
    return sha256(f"{tenant}\0{user_id}".encode()).hexdigest() if user_id else ""


def users_in(body: Mapping[str, Any]) -> Iterator[str]:
    """User ids of an event's JSON; what is of another shape names nobody."""
    found = [body.get("user_id"), body.get("asker")]
    for name in ("raters", "askers"):
        found += _list(body.get(name))
    for name in ("feedback", "signals"):
        entries = (
            cast("Mapping[str, Any]", one)
            for one in _list(body.get(name))
            if isinstance(one, Mapping)
        )
        found += [entry.get("user_id") for entry in entries]
    return (one for one in found if isinstance(one, str))


def subjects_in(body: Mapping[str, Any]) -> list[str]:
    """Subjects of all people whom an event's JSON names, by user id or as `subjects`; sorted."""
    tenant = str(body.get("tenant", ""))
    found = {subject_of(tenant, user) for user in users_in(body) if user}
    return sorted(found.union(one for one in _list(body.get("subjects")) if isinstance(one, str)))


def _list(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []
