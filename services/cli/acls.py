"""`ratchet kafka`: the ACLs that brokers need, from the topics' declared writers and readers."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.output import AsJson, print_json, print_table
from services.cli.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="Say what brokers must allow.")


@app.callback()
def group() -> None:
    """Say what brokers must allow."""


@app.command()
def acls(
    *,
    prefix: Annotated[
        str, typer.Option(help="What principals begin with: <prefix><service>.")
    ] = "ratchet-",
    arguments: Annotated[
        bool, typer.Option("--arguments", help="Print lines of kafka-acls.sh arguments.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the ACLs of each service and of each tenant's products (RATCHET_TENANTS)."""
    from shared.kafka.acls import Acl, required_acls

    rules = sorted(set(required_acls(load_settings().tenants, prefix=prefix)))
    if as_json:
        print_json([rule._asdict() for rule in rules])
    elif arguments:
        for rule in rules:
            typer.echo(rule.arguments())
    else:
        print_table("ACLs", Acl._fields, rules)
