"""Entry point of the `ratchet` command: one module per group; heavy imports are deferred."""

from __future__ import annotations

import sys

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

app = typer.Typer(
    name="ratchet",
    help="Operate a Ratchet: see what runs, steer rollouts, start training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("status")(status.status)
app.command("top")(top.top)
app.command("doctor")(doctor.doctor)
app.add_typer(train.app, name="train")
app.add_typer(versions.app, name="versions")
app.add_typer(rollout.app, name="rollout")
app.add_typer(adapters.app, name="adapters")
app.add_typer(cases.app, name="cases")
app.add_typer(dataset.app, name="dataset")
app.add_typer(feedback.app, name="feedback")
app.add_typer(annotations.app, name="annotations")
app.add_typer(users.app, name="users")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(topics.app, name="topics")
app.add_typer(acls.app, name="kafka")
app.add_typer(state.app, name="state")
app.add_typer(keys.app, name="keys")
app.add_typer(report.app, name="report")
app.add_typer(redteam.app, name="redteam")
app.add_typer(audit.app, name="audit")
app.add_typer(backup.app, name="backup")


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
