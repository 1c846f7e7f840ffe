"""Errors of the command: message, exit status and what to do."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit statuses of `ratchet`."""

    ok = 0
    failed = 1
    """What was asked for did not come out well: a service is not ready, a run was rejected."""
    usage = 2
    """A wrong option, argument or environment variable."""
    unreachable = 3
    """A service, Kafka or Redis gave no answer."""
    refused = 4
    """A service answered no."""


class CliError(Exception):
    """What was wrong and what to do; ends the command with `status`."""

    def __init__(self, message: str, status: Exit) -> None:
        super().__init__(message)
        self.status = status


def unreachable(what: str, where: str, error: object, variable: str) -> CliError:
    """The error of a service that did not answer."""
    return CliError(
        f"{what} at {where} gave no answer: {error}\n"
        f"Start it (make up; ratchet status shows the rest), or set {variable}.",
        Exit.unreachable,
    )
