"""`ratchet feedback`: send and withdraw feedback by hand."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from services.cli.http import ask, segment
from services.cli.output import AsJson, print_fields, print_json
from services.cli.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="Give feedback, and take it back.")

TraceId = Annotated[str, typer.Argument(help="The answer's x-ratchet-trace-id.")]


@app.command()
def send(
    trace_id: TraceId,
    kind: Annotated[
        str,
        typer.Argument(
            metavar="TYPE",
            help="thumbs_up, thumbs_down, rating, text_correction, preference, demonstration, comment.",
        ),
    ],
    value: Annotated[
        str, typer.Argument(help="1-5, a text, or JSON, as the type asks; none for thumbs.")
    ] = "",
    *,
    user: Annotated[str, typer.Option(help="Who gives it.")] = "",
    feedback_id: Annotated[str, typer.Option("--id", help="Its id; else made of the above.")] = "",
    revision: Annotated[
        int, typer.Option(min=0, help="One more for each edit; 0: the last counts.")
    ] = 0,
    clamp: Annotated[bool, typer.Option(help="Bring a rating into 1-5.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send one piece of feedback; returns once it is stored."""
    body: dict[str, Any] = {"trace_id": trace_id, "type": kind, "revision": revision}
    if value:
        body["value"] = value if kind in ("comment", "demonstration") else _parsed(value)
    if user:
        body["user_id"] = user
    if feedback_id:
        body["feedback_id"] = feedback_id
    query = {"clamp": "true"} if clamp else {}
    receipt = ask(load_settings(), "feedback", "POST", "/v1/feedback", query=query, body=body)
    _show(receipt, as_json=as_json)


@app.command()
def withdraw(
    feedback_id: Annotated[str, typer.Argument(help="The feedback's id.")],
    trace_id: TraceId,
    *,
    kind: Annotated[str, typer.Option("--type", help="Its type, where its id is your own.")] = "",
    user: Annotated[str, typer.Option(help="Who gave it.")] = "",
    revision: Annotated[int | None, typer.Option(min=1, help="Else above every edit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Take feedback back."""
    query = {"trace_id": trace_id, "type": kind, "user_id": user, "revision": revision}
    path = f"/v1/feedback/{segment(feedback_id)}"
    _show(ask(load_settings(), "feedback", "DELETE", path, query=query), as_json=as_json)


@app.command()
def invite(
    rater: Annotated[str, typer.Argument(help="The rater's id; their votes carry it.")],
    *,
    hours: Annotated[float, typer.Option(min=0.01, help="How long the link signs in.")] = 168.0,
    url: Annotated[str, typer.Option(help="The page's address as raters reach it.")] = "",
    as_json: AsJson = False,
) -> None:
    """Invite a rater to the voting page: prints a link that signs them in."""
    settings = load_settings()
    body = {"user_id": rater, "hours": hours}
    invited = ask(settings, "feedback", "POST", "/v1/invites", body=body)
    link = (url or settings.url("feedback")).rstrip("/") + invited.pop("path")
    if as_json:
        print_json({**invited, "link": link})
    else:
        typer.echo(
            f"{link}\nIt signs {rater} in until {invited['expires_at']}; treat it as a password."
        )


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _show(receipt: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(receipt)
    else:
        print_fields("Stored", receipt)
