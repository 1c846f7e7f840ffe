"""Tenant names: each becomes part of a Kafka topic's name, so they share its alphabet."""

from __future__ import annotations

import re
from collections.abc import Iterable

ALLOWED = "letters, digits, '.', '_' and '-', at most 128 of them, names separated by commas"

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


def check_tenants(names: Iterable[str]) -> tuple[str, ...]:
    """The names as given.

    Raises:
        ValueError: no topic can carry one of the names.

    """
    checked = tuple(names)
    for name in checked:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no tenant's name; allowed: {ALLOWED}")
    return checked
