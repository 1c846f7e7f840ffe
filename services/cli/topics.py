"""`ratchet topics`: the topics that the contracts declare."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.errors import CliError, Exit, unreachable
from services.cli.output import AsJson, print_json, print_table
from services.cli.settings import CliSettings, load_settings

if TYPE_CHECKING:
    from shared.kafka.topics import TopicReport

app = typer.Typer(no_args_is_help=True, help="Create the declared topics, and compare them.")

DEADLINE_S = 120.0


@app.command()
def apply(
    *,
    strict: Annotated[bool, typer.Option(help="Exit with 1 where a topic differs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create the topics that are missing; topics that differ are named, never changed."""
    report = _apply(load_settings(), dry_run=False)
    _show(report, "created", as_json=as_json)
    if strict and report.drift:
        raise typer.Exit(Exit.failed)


@app.command()
def diff(*, as_json: AsJson = False) -> None:
    """Say which topics are missing or differ, and change nothing; exit 1 where any does."""
    report = _apply(load_settings(), dry_run=True)
    _show(report, "missing", as_json=as_json)
    if report.created or report.drift:
        raise typer.Exit(Exit.failed)


def _apply(settings: CliSettings, *, dry_run: bool) -> TopicReport:
    from aiokafka.errors import KafkaError

    from shared.kafka.topics import apply_topics

    async def run() -> TopicReport:
        async with asyncio.timeout(DEADLINE_S):
            return await apply_topics(
                settings.kafka_bootstrap,
                tenants=settings.tenants,
                partitions=settings.join_partitions,
                replication=settings.replication,
                dry_run=dry_run,
            )

    try:
        return asyncio.run(run())
    except TimeoutError as error:
        raise CliError(
            f"Kafka took longer than {DEADLINE_S:g} s; try again", Exit.unreachable
        ) from error
    except (KafkaError, OSError) as error:
        raise unreachable(
            "Kafka", settings.kafka_bootstrap, error, "RATCHET_KAFKA_BOOTSTRAP"
        ) from error


def _show(report: TopicReport, created: str, *, as_json: bool) -> None:
    if as_json:
        print_json({created: report.created, "unchanged": report.unchanged, "drift": report.drift})
        return
    rows = [(name, created) for name in report.created]
    rows += [(line, "differs") for line in report.drift]
    rows += [(name, "as declared") for name in report.unchanged]
    print_table("Topics", ("topic", "state"), rows)
