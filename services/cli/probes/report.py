"""Reports of probe runs: the file, the record that it was made, and shared options."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from services.cli.errors import CliError, Exit
from services.cli.probes.asking import ProbeAnswer
from shared.intervals import wilson

if TYPE_CHECKING:
    from shared.kafka.log import EventLog

"""Tenant of the records: a probe run belongs to the operator, not to a product."""
HASH_SHOWN = 12

ProbedVersion = Annotated[str, typer.Argument(help="A version that the engine serves.")]
Out = Annotated[Path | None, typer.Option(help="JSON file for the whole report, answers included.")]
MaxTokens = Annotated[int, typer.Option(min=1, max=32_768, help="Tokens of an answer, at most.")]


P = TypeVar("P")


def probes_of(path: Path, load: Callable[[Path], P]) -> P:
    """What a file of probes has.

    Raises:
        CliError: the file cannot be read or breaks a rule.

    """
    from shared.probes.reading import BadProbes

    try:
        return load(path)
    except BadProbes as error:
        raise CliError(str(error), Exit.usage) from None


def check_answered(answers: Iterable[ProbeAnswer]) -> None:
    """Refuse a run of which nothing was answered.

    Raises:
        CliError: every question failed; says the first reason.

    """
    failures = [answer.failure for answer in answers]
    if failures and all(failures):
        raise CliError(
            f"none of {len(failures)} questions was answered: {failures[0]}", Exit.unreachable
        )


def write_report(out: Path | None, report: dict[str, Any]) -> str:
    """Write a report where a file is wanted; returns the beginning of its SHA-256.

    Raises:
        CliError: the file cannot be written.

    """
    data = json.dumps(report, ensure_ascii=False, indent=2).encode() + b"\n"
    if out is not None:
        try:
            out.write_bytes(data)
        except OSError as error:
            raise CliError(f"{out}: cannot be written: {error}", Exit.failed) from None
    return hashlib.sha256(data).hexdigest()[:HASH_SHOWN]


async def publish_ran(
    log: EventLog, action: str, version: str, asked: dict[str, str], said: str
) -> None:
    """Record on the audit topic that a version was probed, and with what result."""
    from shared.kafka.audit import Requester, audit_action

    asker = Requester(**asked)
    told = asker._replace(reason=f"{asker.reason}: {said}")
    await audit_action(log, action, version, told, at=datetime.now(UTC))


def share_within(hits: int, judged: int) -> str:
    """A share with its 95 % interval, for people."""
    low, high = wilson(hits, judged)
    share = f"{hits / judged:.0%}" if judged else "–"
    return f"{share} [{low:.0%}, {high:.0%}]"
