"""What fields of settings have in common: shared variables, lists and pairs in one variable."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AliasChoices, Field

REVISION = re.compile(r"[A-Za-z0-9._/-]{1,200}")
"""Branch, tag or commit of the hub."""
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


def revisions_of(value: object) -> object:
    """`base@revision`, comma-separated, by base; one without a base, of all others, under "".

    Raises:
        ValueError: a revision cannot be one, or a base has two.

    """
    if not isinstance(value, str):
        return value
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in value.split(","))):
        base, _, revision = part.rpartition("@")
        if not REVISION.fullmatch(revision) or part.startswith("@"):
            raise ValueError(
                f"{part} is no branch, tag or commit; write it alone, or base@revision of each base, "
                "comma-separated"
            )
        if base in found:
            of = base or "all other bases"
            raise ValueError(f"names two revisions of {of}; a base has one")
        found[base] = revision
    return found
