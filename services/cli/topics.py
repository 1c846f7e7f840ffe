"""`ratchet topics`: create the declared topics and report drift."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.errors import Exit
from services.cli.kafka import run_with_kafka
from services.cli.output import AsJson, print_json, print_table
from services.cli.settings import CliSettings, load_settings

if TYPE_CHECKING:
    from shared.kafka.topics import TopicReport

TRY_S = 30.0
TRIES = 3
WAIT_S = 120.0
WAIT_PAUSE_S = 2.0

app = typer.Typer(no_args_is_help=True, help="Create the declared topics, and compare them.")


@app.command()
def apply(
    *,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 where a topic differs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Create the topics that are missing; topics that differ are named, never changed.

    Exit 4 where the brokers refused a topic; each is shown with their reason.
    """
    report = _apply(load_settings(), dry_run=False)
    _show(report, "created", as_json=as_json)
    if report.refused:
        raise typer.Exit(Exit.refused)
    if strict and report.drift:
        raise typer.Exit(Exit.failed)


@app.command()
def diff(*, as_json: AsJson = False) -> None:
    """Say which topics are missing or differ, and change nothing; exit 1 where any does."""
    report = _apply(load_settings(), dry_run=True)
    _show(report, "missing", as_json=as_json)
    if report.refused:
        raise typer.Exit(Exit.refused)
    if report.created or report.drift:
        raise typer.Exit(Exit.failed)


@app.command()
def wait(
    *,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=1, max=3600, help="Seconds to wait.")
    ] = WAIT_S,
) -> None:
    """Wait until every declared topic exists, as after an installation; exit 1 at the deadline.

    Exit 3 at once where no broker answers. Topics that differ are no reason to wait.
    """
    settings = load_settings()
    deadline = time.monotonic() + timeout_s
    while missing := _apply(settings, dry_run=True).created:
        if time.monotonic() >= deadline:
            typer.echo(f"still missing: {', '.join(missing)}; run ratchet topics apply", err=True)
            raise typer.Exit(Exit.failed)
        time.sleep(WAIT_PAUSE_S)


def _apply(settings: CliSettings, *, dry_run: bool) -> TopicReport:
    from shared.kafka.security import KafkaConnection
    from shared.kafka.topics import TopicsRefused, apply_topics

    async def once() -> TopicReport:
        try:
            async with asyncio.timeout(TRY_S):
                return await apply_topics(
                    KafkaConnection.of(settings.kafka),
                    tenants=settings.tenants,
                    partitions=settings.join_partitions,
                    replication=settings.replication,
                    dry_run=dry_run,
                )
        except TopicsRefused as error:
            return error.report

    async def work() -> TopicReport:
        # Brokers that have only just started may take a request and never answer it.
        for _ in range(TRIES - 1):
            with contextlib.suppress(TimeoutError):
                return await once()
        return await once()

    return run_with_kafka(settings, work)


def _show(report: TopicReport, created: str, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                created: report.created,
                "unchanged": report.unchanged,
                "drift": report.drift,
                "refused": report.refused,
            }
        )
        return
    rows = [(name, created) for name in report.created]
    rows += [(name, f"refused: {reason}") for name, reason in report.refused.items()]
    rows += [(line, "differs") for line in report.drift]
    rows += [(name, "as declared") for name in report.unchanged]
    print_table("Topics", ("topic", "state"), rows)
