"""`ratchet rollout holdout`: keep a share of the users on a reference version."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from services.cli.http import ask
from services.cli.identity import OnBehalfOf, Why, who
from services.cli.options import DEFAULT_MODEL, Model
from services.cli.output import AsJson, print_fields, print_json
from services.cli.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="Keep a share of the users on a reference version.")


@app.command("set")
def set_holdout(
    reason: Why,
    *,
    share: Annotated[float, typer.Option(help="Percent of the users, at most 5.")],
    model: Model = DEFAULT_MODEL,
    on_behalf_of: OnBehalfOf = "",
    as_json: AsJson = False,
) -> None:
    """Hold users out on the version that is stable now, or change the share of the present ones."""
    _set(model, share, reason, on_behalf_of, as_json=as_json)


@app.command("clear")
def clear_holdout(
    reason: Why,
    *,
    model: Model = DEFAULT_MODEL,
    on_behalf_of: OnBehalfOf = "",
    as_json: AsJson = False,
) -> None:
    """End the holdout: its users get what everybody gets."""
    _set(model, 0, reason, on_behalf_of, as_json=as_json)


@app.command("show")
def show_holdout(*, model: Model = DEFAULT_MODEL, as_json: AsJson = False) -> None:
    """Show share and reference version, and who set them and why."""
    _print(
        ask(load_settings(), "rollout", "GET", "/v1/holdout", query={"model": model}),
        as_json=as_json,
    )


def _set(model: str, share: float, reason: str, on_behalf_of: str, *, as_json: bool) -> None:
    body = {"model": model, "share": share, "reason": reason}
    body["on_behalf_of"] = on_behalf_of or who()
    _print(ask(load_settings(), "rollout", "POST", "/v1/holdout", body=body), as_json=as_json)


def _print(holdout: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(holdout)
        return
    set_by = holdout.get("set_by") or {}
    print_fields(
        f"Holdout of {holdout.get('model')}",
        {
            "share": f"{holdout.get('share', 0):g} %",
            "reference": holdout.get("reference") or None,
            "since": set_by.get("at"),
            "actor": set_by.get("actor"),
            "on behalf of": set_by.get("on_behalf_of"),
            "reason": set_by.get("reason"),
        },
    )
