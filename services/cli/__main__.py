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

GROUPS = {
    "train": (train.app, "train --method dpo --wait"),
    "versions": (versions.app, "versions diff assistant-v1.0 assistant-v1.1"),
    "rollout": (rollout.app, 'rollout start assistant-v1.1 --reason "the team liked it"'),
    "adapters": (adapters.app, "adapters list"),
    "cases": (cases.app, "cases list --model assistant"),
    "dataset": (dataset.app, "dataset import pairs.jsonl --to dataset.jsonl"),
    "feedback": (feedback.app, "feedback import log.jsonl --dry-run"),
    "annotations": (annotations.app, "annotations sample --count 50"),
    "users": (users.app, 'users erase user-4711 --reason "asked for it"'),
    "dead-letters": (dead_letters.app, "dead-letters list --limit 20"),
    "topics": (topics.app, "topics diff"),
    "kafka": (acls.app, "kafka acls"),
    "state": (state.app, "state rebuild"),
    "keys": (keys.app, "keys create --scope infer --scope feedback --name shop --days 90"),
    "report": (report.app, "report weekly --out reports"),
    "redteam": (redteam.app, "redteam run assistant-v1.1 --out probes.json"),
    "audit": (audit.app, "audit bias assistant-v1.1"),
    "backup": (backup.app, "backup take /backup/monday"),
}
"""Groups of commands, each with an example that its help ends with."""

app = typer.Typer(
    name="ratchet",
    help="Operate a Ratchet: see what runs, steer rollouts, start training.",
    epilog="Tables come as JSON with --json. Example: ratchet status --json",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("status")(status.status)
app.command("top")(top.top)
app.command("doctor")(doctor.doctor)
for name, (group, example) in GROUPS.items():
    app.add_typer(group, name=name, epilog=f"Example: ratchet {example}")


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
