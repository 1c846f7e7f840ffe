"""`ratchet feedback`: send, withdraw and look up feedback; list and export examples."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.agreement import agreement
from services.cli.errors import CliError, Exit
from services.cli.http import ask, download, download_to, listing, segment
from services.cli.import_log import import_log
from services.cli.output import AsJson, print_fields, print_json, print_table
from services.cli.parquet import require_pyarrow, write_parquet
from services.cli.prioritise import prioritise
from services.cli.ranking import ranking
from services.cli.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="Give feedback, see what became of it, rank by votes.")
app.command("import")(import_log)
app.command("ranking")(ranking)
app.command("agreement")(agreement)
app.command("prioritise")(prioritise)

SHOWN = 60
"""Characters of a text in a table."""
TraceId = Annotated[str, typer.Argument(help="The answer's x-ratchet-trace-id.")]


@app.command()
def send(
    trace_id: TraceId,
    kind: Annotated[
        str,
        typer.Argument(
            metavar="TYPE",
            help="thumbs_up, thumbs_down, rating, text_correction, preference, demonstration, comment; "
            "signals: regenerate, copy, edit_kept, abandon, follow_up.",
        ),
    ],
    value: Annotated[
        str, typer.Argument(help="1-5, a text, or JSON, as the type asks; none for thumbs.")
    ] = "",
    *,
    user: Annotated[str, typer.Option(help="Who gives it.")] = "",
    feedback_id: Annotated[str, typer.Option("--id", help="Its id; else made of the above.")] = "",
    revision: Annotated[
        int, typer.Option(min=0, help="Number of the edit, one more each; 0: the last counts.")
    ] = 0,
    clamp: Annotated[bool, typer.Option("--clamp", help="Bring a rating into 1-5.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send one piece of feedback; returns once it is stored."""
    body: dict[str, Any] = {"trace_id": trace_id, "type": kind, "revision": revision}
    if value:
        body["value"] = (
            value if kind in ("comment", "demonstration", "follow_up") else _parsed(value)
        )
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
    revision: Annotated[
        int | None, typer.Option(min=1, help="Number of the edit; else above every one.")
    ] = None,
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
    hours: Annotated[float, typer.Option(min=0.01, help="Hours that the link signs in.")] = 168.0,
    url: Annotated[str, typer.Option(help="The page's address as raters reach it.")] = "",
    as_json: AsJson = False,
) -> None:
    """Print a link that signs a rater in to the voting page."""
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


@app.command()
def show(
    feedback_id: Annotated[str, typer.Argument(help="The feedback's id.")],
    *,
    trace_id: Annotated[
        str, typer.Option("--trace", help="The answer's trace id, where feedback ids repeat.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show what became of a feedback: its revisions, where it counts, what was made of it."""
    path = f"/v1/feedback/{segment(feedback_id)}"
    found = ask(load_settings(), "feedback", "GET", path, query={"trace_id": trace_id})
    if as_json:
        print_json(found)
        return
    revisions, products = found.pop("revisions"), found.pop("products")
    counted = found.pop("counted") or {}
    print_fields("Feedback", {**found, **counted})
    columns = ("revision", "received_at", "type", "value", "withdrawn", "counts")
    print_table("Revisions", columns, [[one[name] for name in columns] for one in revisions])
    columns = ("pair_id", "kind", "source", "label", "retracted_reason", "suspicion", "read_by")
    print_table("Made of it", columns, [[one[name] for name in columns] for one in products])


Kind = Annotated[
    str,
    typer.Argument(
        help="any, positive, negative, correction, demonstration, comment, pair or unpaired."
    ),
]
Version = Annotated[str, typer.Option(help="Version that answered; of a pair, either of the two.")]
Since = Annotated[str, typer.Option(help="From this time on, such as 2026-11-18T09:00:00Z.")]
Until = Annotated[str, typer.Option(help="Before this time.")]
Category = Annotated[str, typer.Option(help="Category of the metadata.")]
Segment = Annotated[str, typer.Option("--segment", help="Segment of the metadata.")]
Locale = Annotated[str, typer.Option(help="Locale of the metadata.")]
Tag = Annotated[str, typer.Option(help="Another label of the metadata: name=value, or name.")]
Order = Annotated[str, typer.Option(help="newest or oldest first.")]


@app.command()
def examples(
    kind: Kind = "any",
    *,
    version: Version = "",
    since: Since = "",
    until: Until = "",
    category: Category = "",
    user_segment: Segment = "",
    locale: Locale = "",
    tag: Tag = "",
    order: Order = "newest",
    limit: Annotated[int, typer.Option(min=1, max=500, help="Examples of this page.")] = 20,
    cursor: Annotated[str, typer.Option(help="`next` of the page before.")] = "",
    as_json: AsJson = False,
) -> None:
    """List examples with feedback, or training data, a page at a time."""
    query = {
        "kind": kind, "version": version, "since": since, "until": until, "category": category,
        "segment": user_segment, "locale": locale, "tag": tag, "order": order, "limit": limit, "cursor": cursor,
    }  # fmt: skip
    page = ask(load_settings(), "feedback", "GET", "/v1/examples", query=query)
    if as_json:
        print_json(page)
        return
    columns = ("at", "version", "category", "locale", "prompt", "answer", "feedback")
    print_table(f"Examples ({kind})", columns, [_row(one) for one in listing(page, "examples")])
    if page["next"]:
        typer.echo(f"more: --cursor {page['next']}")


@app.command()
def export(
    kind: Kind = "any",
    *,
    version: Version = "",
    since: Since = "",
    until: Until = "",
    category: Category = "",
    user_segment: Segment = "",
    locale: Locale = "",
    tag: Tag = "",
    order: Order = "oldest",
    format_: Annotated[
        str, typer.Option("--format", help="jsonl, csv, or parquet, which needs --to.")
    ] = "jsonl",
    to: Annotated[Path | None, typer.Option(help="File; else standard output.")] = None,
) -> None:
    """Write all examples that match to a file or to standard output."""
    columns = format_ == "parquet"
    query = {
        "kind": kind, "version": version, "since": since, "until": until, "category": category,
        "segment": user_segment, "locale": locale, "tag": tag, "order": order,
        "format": "jsonl" if columns else format_,
    }  # fmt: skip
    path = "/v1/examples/export"
    if columns:
        _export_columns(to, query)
        return
    if to is None:
        download(load_settings(), "feedback", path, sys.stdout.buffer, query=query)
        return
    size = download_to(load_settings(), "feedback", path, to, query=query)
    typer.echo(f"{size} bytes in {to}", err=True)


def _export_columns(to: Path | None, query: dict[str, Any]) -> None:
    """Write Parquet from the stream of lines; the services have no pyarrow."""
    if to is None:
        raise CliError("--to: Parquet needs a file", Exit.usage)
    require_pyarrow()
    lines, partial = (to.with_name(f".{part}-{to.name}") for part in ("lines", "partial"))
    try:
        with lines.open("wb") as file:
            download(load_settings(), "feedback", "/v1/examples/export", file, query=query)
        write_parquet(lines, partial)
        partial.replace(to)
    finally:
        lines.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)
    typer.echo(f"{to.stat().st_size} bytes in {to}", err=True)


@app.command()
def reindex() -> None:
    """Let the service delete its read model and fold the log anew; queries wait until it is back."""
    ask(load_settings(), "feedback", "POST", "/v1/read-model/reindex")
    typer.echo("the service folds the log anew")


def _row(one: dict[str, Any]) -> tuple[Any, ...]:
    context = one["context"]
    feedback = one.get("feedback")
    return (
        one.get("started_at") or one["created_at"],
        one.get("version") or one.get("chosen_version"),
        context["category"],
        context["locale"],
        _short(one["messages"][-1]["content"] if one["messages"] else ""),
        _short(one.get("completion") or one.get("chosen")),
        ", ".join(item["type"] for item in feedback)
        if feedback is not None
        else one.get("source", "up" if one.get("label") else "down"),
    )


def _short(text: str | None) -> str:
    flat = " ".join((text or "").split())
    return flat if len(flat) <= SHOWN else flat[: SHOWN - 1] + "…"


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
