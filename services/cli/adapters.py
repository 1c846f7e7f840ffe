"""`ratchet adapters`: list the engine's adapters and accept a refused one."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.http import ask, listing, segment
from services.cli.identity import OnBehalfOf, Why, who
from services.cli.output import AsJson, print_fields, print_json, print_table
from services.cli.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="Look at loaded adapters; accept a refused one.")


@app.command("list")
def list_adapters(*, as_json: AsJson = False) -> None:
    """List the adapters that the inference agent holds, and say why one is refused."""
    data = ask(load_settings(), "inference", "GET", "/v1/adapters")
    if as_json:
        print_json(data)
        return
    print_table(
        "Adapters",
        ("version", "state", "difference", "reason"),
        [
            (item.get("version"), item.get("state"), item.get("difference"), item.get("reason"))
            for item in listing(data, "adapters")
        ],
    )


@app.command()
def accept(
    version: Annotated[str, typer.Argument(help="A version refused for being close to another.")],
    reason: Why,
    *,
    on_behalf_of: OnBehalfOf = "",
    as_json: AsJson = False,
) -> None:
    """Let a version serve although it answers much like another one."""
    path = f"/v1/adapters/{segment(version)}/accept"
    body = {"on_behalf_of": on_behalf_of or who(), "reason": reason}
    accepted = ask(load_settings(), "inference", "POST", path, body=body)
    if as_json:
        print_json(accepted)
    else:
        print_fields("Accepted", accepted)
