"""Findings of `ratchet doctor`: what was looked at, how it is, what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from services.cli.errors import CliError
from services.cli.settings import CliSettings

State = Literal["ok", "look", "wrong"]
TIMEOUT_S = 5.0
READY = 200


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, and what to do where it is not well."""

    what: str
    state: State
    detail: str
    remedy: str = ""


Look: TypeAlias = Callable[[CliSettings], list[Finding]]


def guarded(name: str, look: Look, settings: CliSettings) -> list[Finding]:
    """A dependency that is away is a finding as well."""
    try:
        return look(settings)
    except CliError as error:
        detail, _, remedy = str(error).partition("\n")
        return [Finding(name, "wrong", detail, remedy)]
