"""Checked names: text of records that becomes a path, a URL, a Redis key or a LoRA's name.

One pattern for all of them, so a name that is accepted once works everywhere. The rule is checked
by a validator and not by the JSON Schema, whose released form may not change. Errors do not quote
the value: they reach logs and dead letters.
"""

from __future__ import annotations

import re

MAX_NAME = 100
MAX_MODEL_NAME = 64
"""Shorter, as a version's and a dataset's name begin with it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_name(value: str) -> str:
    """The name of a version or dataset, as it is.

    Raises:
        ValueError: it could be read as something else than one plain path segment.

    """
    return _check(value, MAX_NAME)


def check_model_name(value: str) -> str:
    """A model's name, as it is.

    Raises:
        ValueError: it could be read as something else than one plain path segment.

    """
    return _check(value, MAX_MODEL_NAME)


def check_optional_name(value: str) -> str:
    """A name, or empty text for none.

    Raises:
        ValueError: it could be read as something else than one plain path segment.

    """
    return check_name(value) if value else value


def check_sha256(value: str) -> str:
    """A SHA-256 in hex, as it is.

    Raises:
        ValueError: it is not 64 hexadecimal digits in lower case.

    """
    if not _SHA256.fullmatch(value):
        raise ValueError("a SHA-256 is 64 hexadecimal digits in lower case")
    return value


def _check(value: str, limit: int) -> str:
    if len(value) > limit or not _NAME.fullmatch(value):
        raise ValueError(
            "a name has letters, digits, '.', '_' and '-', begins with a letter or digit, and has "
            f"{limit} characters at most; choose another"
        )
    return value
