"""`ratchet state`: rebuild the views in Redis from Kafka."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from services.cli.kafka import with_log, with_view
from services.cli.output import AsJson, print_json
from services.cli.settings import load_settings

if TYPE_CHECKING:
    from shared.kafka.log import EventLog

app = typer.Typer(no_args_is_help=True, help="Rebuild the views in Redis.")


@app.command()
def rebuild(*, as_json: AsJson = False) -> None:
    """Fill the views in Redis anew from Kafka."""
    settings = load_settings()

    async def work(log: EventLog) -> int:
        from shared.registry.follow import rebuild_views

        return await with_view(settings, lambda view: rebuild_views(log, view))

    count = with_log(settings, work)
    if as_json:
        print_json({"states": count})
    else:
        typer.echo(f"{count} routing states rebuilt")
