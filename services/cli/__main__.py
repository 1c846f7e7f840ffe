"""Entry point of the `ratchet` command: one module per group; heavy imports are deferred."""

from __future__ import annotations

import shutil
import sys
from typing import Annotated, Literal

import typer

from services.cli import (
    acls,
    adapters,
    annotations,
    audit,
    backup,
    cases,
    dataset,
    dead_letters,
    doctor,
    feedback,
    keys,
    redteam,
    report,
    rollout,
    state,
    status,
    top,
    topics,
    train,
    users,
    versions,
)
from services.cli.errors import CliError, Exit
from services.cli.examples import end_helps_with_examples
from services.cli.output import offer_formats
from services.cli.version import print_version

GROUPS = {
    "train": train.app,
    "versions": versions.app,
    "rollout": rollout.app,
    "adapters": adapters.app,
    "cases": cases.app,
    "dataset": dataset.app,
    "feedback": feedback.app,
    "annotations": annotations.app,
    "users": users.app,
    "dead-letters": dead_letters.app,
    "topics": topics.app,
    "kafka": acls.app,
    "state": state.app,
    "keys": keys.app,
    "report": report.app,
    "redteam": redteam.app,
    "audit": audit.app,
    "backup": backup.app,
}

NARROW = 80
"""Columns below which the drawn help would cut words; the plain one wraps them."""


def help_style(columns: int) -> Literal["rich"] | None:
    """How typer prints help in a terminal of so many columns."""
    return "rich" if columns >= NARROW else None


app = typer.Typer(
    name="ratchet",
    help="Operate a Ratchet: see what runs, steer rollouts, start training.",
    epilog="Tables come as JSON or YAML with --output. Example: ratchet status --output yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=help_style(shutil.get_terminal_size().columns),
)
app.command("status")(status.status)
app.command("top")(top.top)
app.command("doctor")(doctor.doctor)
for name, group in GROUPS.items():
    app.add_typer(group, name=name)
end_helps_with_examples(app)
offer_formats(app)


@app.callback()
def ratchet(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Operate a Ratchet: see what runs, steer rollouts, start training."""


def main() -> None:
    try:
        app()
    except CliError as error:
        typer.echo(f"ratchet: {error}", err=True)
        sys.exit(error.status)
    except OSError as error:
        if error.filename is None:
            raise
        typer.echo(f"ratchet: {error.filename}: {error.strerror}", err=True)
        sys.exit(Exit.failed)
    except KeyboardInterrupt:
        sys.exit(Exit.failed)


if __name__ == "__main__":
    main()
