"""Who runs the command, on record: the principal, which nobody chooses, and for whom it acts."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from services.cli.settings import CliSettings
    from shared.kafka.audit import Requester

OnBehalfOf = Annotated[
    str,
    typer.Option(
        "--on-behalf-of", help="For whom, beside the actor; kept on record.", show_default="you"
    ),
]
Why = Annotated[str, typer.Option("--reason", help="Why; kept on record.")]


def who() -> str:
    """The login name of whoever runs the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "operator"


def on_record(settings: CliSettings, on_behalf_of: str, reason: str) -> dict[str, str]:
    """The fields of an event that say who asked for it, for whom, and why."""
    return requester(settings, on_behalf_of or who(), reason)._asdict()


def requester(settings: CliSettings, on_behalf_of: str, reason: str) -> Requester:
    """The same for what is recorded as an action."""
    from shared.kafka.audit import Requester

    return Requester(principal(settings), on_behalf_of, reason)


def principal(settings: CliSettings) -> str:
    """The actor of what the command writes to Kafka: the brokers' user, else this machine's."""
    return settings.kafka.kafka_username or f"local:{who()}"
