"""`ratchet users`: erase a person, see the proof, export all that is known of the person."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.errors import CliError, Exit
from services.cli.http import ask, download, download_to, listing, segment
from services.cli.identity import OnBehalfOf, who
from services.cli.kafka import with_log
from services.cli.output import AsJson, print_fields, print_json, print_table
from services.cli.settings import CliSettings, load_settings

app = typer.Typer(no_args_is_help=True, help="Erase people, and export what is known of them.")

PAUSE_S = 1.0
UserId = Annotated[str, typer.Argument(help="The user id that products send.")]


@app.command()
def erase(
    user_id: UserId,
    *,
    reason: Annotated[str, typer.Option(help="Why; kept on record.")],
    on_behalf_of: OnBehalfOf = "",
    wait_s: Annotated[
        float, typer.Option("--wait", min=0, help="Seconds to wait until it is done.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Erase a person: texts and training data go, figures stay. Repeating it does no harm."""
    settings = load_settings()
    query = {"reason": reason, "on_behalf_of": on_behalf_of or who()}
    path = f"/v1/users/{segment(user_id)}"
    asked = ask(settings, "feedback", "DELETE", path, query=query)
    deadline = time.monotonic() + wait_s
    found = asked | {"state": "requested"}
    while wait_s and found["state"] != "completed":
        if time.monotonic() > deadline:
            late = f"erasure {asked['erasure_id']} is on record and not done after {wait_s:g} s"
            raise CliError(f"{late}; see: ratchet users status", Exit.failed)
        time.sleep(PAUSE_S)
        found = next(
            one for one in _erasures(settings, user_id) if one["erasure_id"] == asked["erasure_id"]
        )
    if as_json:
        print_json(found)
    else:
        print_fields("Erasure", found)


@app.command()
def status(user_id: UserId, *, as_json: AsJson = False) -> None:
    """Show a person's erasures, and what each took away."""
    found = _erasures(load_settings(), user_id)
    if as_json:
        print_json({"erasures": found})
        return
    columns = (
        "erasure_id", "state", "requested_at", "completed_at", "traces", "examples", "products",
        "actor", "reason",
    )  # fmt: skip
    print_table("Erasures", columns, [[one[name] for name in columns] for one in found])


@app.command("rewrap-keys")
def rewrap_keys(*, as_json: AsJson = False) -> None:
    """Wrap the keys of people's texts by the first secret of RATCHET_TEXT_KEY_FILE."""
    from shared.credentials import CredentialsUnreadable
    from shared.kafka import user_key_upkeep

    settings = load_settings()
    try:
        secrets = settings.kafka.text_secrets()
    except CredentialsUnreadable as error:
        raise CliError(str(error), Exit.usage) from None
    if not secrets:
        raise CliError("RATCHET_TEXT_KEY_FILE: not set; name the file of secrets", Exit.usage)
    done = with_log(settings, lambda log: user_key_upkeep.rewrap_keys(log, secrets))
    found = {"rewrapped": done.rewrapped, "unreadable": done.unreadable}
    if as_json:
        print_json(found)
    else:
        print_fields("Keys", found)
    if done.unreadable:
        late = f"{done.unreadable} keys were wrapped by a secret that the file does not have"
        raise CliError(f"{late}; add it on a further line", Exit.failed)


@app.command()
def export(
    user_id: UserId,
    *,
    to: Annotated[Path | None, typer.Option(help="File; else standard output.")] = None,
) -> None:
    """Write every stored event about a person as JSON Lines."""
    settings, path = load_settings(), f"/v1/users/{segment(user_id)}/export"
    if to is None:
        download(settings, "feedback", path, sys.stdout.buffer, query={})
        return
    size = download_to(settings, "feedback", path, to, query={})
    typer.echo(f"{size} bytes in {to}", err=True)


def _erasures(settings: CliSettings, user_id: str) -> list[dict[str, Any]]:
    path = f"/v1/users/{segment(user_id)}/erasures"
    return listing(ask(settings, "feedback", "GET", path, timeout_s=60.0), "erasures")
