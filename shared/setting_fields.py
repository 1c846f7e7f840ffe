"""What fields of settings have in common: shared variables, and lists in one variable."""

from __future__ import annotations

from typing import Annotated

from pydantic import AliasChoices, Field

HttpAddress = Annotated[str, Field(pattern=r"^https?://")]
"""Where a service is reached: http:// or https://, and a host."""


def shared_name(name: str) -> AliasChoices:
    """The variable of a setting that every service reads under the same name."""
    return AliasChoices(f"RATCHET_{name.upper()}")


def split_list(value: object) -> object:
    """A comma-separated text as a tuple; other values as they are."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value
