"""`ratchet versions trajectory`: improvement over a model's versions, as table, JSON and plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.errors import CliError, Exit
from services.cli.kafka import READ_TIMEOUT_S, with_log
from services.cli.options import DEFAULT_MODEL, Model
from services.cli.output import AsJson, print_json, print_table, show
from services.cli.ranking import ranked_vote, ranking_votes, vote_events
from services.cli.settings import load_settings
from shared.reports.trajectory import TITLES, TrajectoryRow, cells, chain, plot, rows

if TYPE_CHECKING:
    from shared.kafka.log import EventLog, Record
    from shared.ranking.standings import VersionRanking

WHOLE_DAY = b'"1d"'
"""In the bytes of a window of one day."""
BOOTSTRAPS = 10
"""Draws for the ranking's intervals, which are not shown here."""


def show_trajectory(
    *,
    model: Model = DEFAULT_MODEL,
    to: Annotated[str, typer.Option(help="Last version of the chain; empty: the stable one.")] = "",
    html: Annotated[Path | None, typer.Option(help="Write table and plot to this page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show satisfaction, win rates and length from the first version on, beside the targets."""

    async def work(log: EventLog) -> dict[str, tuple[TrajectoryRow, ...]]:
        return await read_trajectories(log, model, to)

    found = with_log(load_settings(), work).get(model)
    if not found:
        wanted = f"{to} is no version of {model}" if to else f"{model} has no version yet"
        raise CliError(f"{wanted}; ratchet versions list has them", Exit.failed)
    if html is not None:
        html.write_text(page(model, found))
        typer.echo(f"{html}: the trajectory of {model}")
    elif as_json:
        print_json({"model": model, "versions": [asdict(row) for row in found]})
    else:
        print_table(f"Trajectory of {model}", tuple(TITLES.values()), cells(found))


def page(model: str, trajectory: Sequence[TrajectoryRow]) -> str:
    """One self-contained HTML page."""
    head = "".join(f"<th>{title}</th>" for title in TITLES.values())
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(show(cell))}</td>' for cell in row)}</tr>"
        for row in cells(trajectory)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>Ratchet: trajectory of {escape(model)}</title>\n"
        "<style>body{font:1rem/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "td,th{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #ccc}</style>\n"
        f"<h1>Trajectory of {escape(model)}</h1>\n{plot(trajectory)}\n"
        f"<table><tr>{head}</tr>{body}</table></html>\n"
    )


async def read_trajectories(
    log: EventLog, model: str = "", to: str = ""
) -> dict[str, tuple[TrajectoryRow, ...]]:
    """The trajectory of each model (or one) that has a version, from the log.

    Raises:
        LogUnavailable: a topic's end was not reached in time.

    """
    from shared.contracts.events.quality import QualityWindow
    from shared.contracts.topics import QUALITY, ROLLOUTS, VERSIONS
    from shared.kafka.envelope import UnreadableRecord
    from shared.kafka.log import read_to_end
    from shared.registry.deployments import Deployments
    from shared.registry.follow import fold_rollout
    from shared.registry.routing import RoutingTable
    from shared.registry.versions import Registry

    registry, table, deployments = Registry(), RoutingTable(), Deployments()
    windows: list[QualityWindow] = []

    def wanted(record: Record) -> bool:
        return record.topic != QUALITY or WHOLE_DAY in (record.value or b"")

    for record in await read_to_end(
        log, VERSIONS, ROLLOUTS, QUALITY, timeout_s=READ_TIMEOUT_S, keep=wanted
    ):
        try:
            if record.topic == VERSIONS:
                registry.apply(record.key, record.value)
            elif record.topic == ROLLOUTS:
                if (state := fold_rollout(table, record)) is not None:
                    deployments.apply(state)
            elif record.value is not None:
                windows.append(QualityWindow.model_validate_json(record.value))
        except (UnreadableRecord, ValueError):
            continue  # What nobody could read is in no trajectory.
    models = {one.record.model for one in registry.versions(model)}
    rankings = await _rankings(log) if models else {}
    return {
        name: rows(chain(registry.versions(name), to), windows, rankings.get(name), deployments)
        for name in sorted(models)
    }


async def _rankings(log: EventLog) -> dict[str, VersionRanking]:
    """The ranking of each model's versions that people voted on."""
    from shared.ranking.standings import rank

    votes = ranking_votes(await vote_events(log))
    return {
        model: rank(
            (ranked_vote(vote) for vote in votes if vote.model == model), bootstraps=BOOTSTRAPS
        )
        for model in {vote.model for vote in votes}
    }
