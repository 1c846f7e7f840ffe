"""Errors of the command: message, exit status and what to do."""

from __future__ import annotations

import socket
from enum import IntEnum

MAX_CAUSES = 8
"""Causes of an error that are looked at: clients wrap one another, and never this often."""


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
        f"{what} at {where} gave no answer: {reason_of(error)}\n"
        f"Start it (make up; ratchet status shows the rest), or set {variable}.",
        Exit.unreachable,
    )


def reason_of(error: object) -> str:
    """Why nothing answered, without the layers of clients that wrap the operating system's reason."""
    found, looked = error, 0
    while isinstance(found, BaseException) and looked < MAX_CAUSES:
        match found:
            case ConnectionRefusedError():
                return "nothing listens there (connection refused)"
            case socket.gaierror():
                return "no such host"
            case TimeoutError():
                return "timed out"
            case _:
                inner = getattr(found, "reason", None)
                wraps = isinstance(inner, BaseException)
                found = inner if wraps else found.__cause__ or found.__context__
        looked += 1
    if isinstance(error, BaseException):
        return str(getattr(error, "reason", error)) or type(error).__name__
    return str(error)
