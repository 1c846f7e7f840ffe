"""`ratchet feedback import`: feedback of old logs and other gateways, as interactions of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.errors import CliError, Exit
from services.cli.http import ask
from services.cli.log_formats.convert import (
    LOG_FORMATS,
    ImportForecast,
    LoggedFeedback,
    detected_log,
    feedback_of,
)
from services.cli.options import DEFAULT_MODEL, Model
from services.cli.output import AsJson, print_fields, print_json
from services.cli.pair_formats.convert import BadLine
from services.cli.row_streams import row_lines, with_form
from services.cli.settings import CliSettings, load_settings

AUTO = "auto"
SHOWN = 10
"""Bad rows that are printed."""
BATCH = 200
BATCH_BYTES = 4_000_000
"""Of a request's JSON as it is sent, where a letter beyond ASCII takes six bytes."""
TIMEOUT_S = 60.0


def import_log(
    source_file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSONL, maybe .gz or .zst, or .parquet.")
    ],
    *,
    format_: Annotated[str, typer.Option("--format", help=f"{', '.join(LOG_FORMATS)}.")] = AUTO,
    source: Annotated[
        str, typer.Option(help="Where the answers are from; else the format's name.")
    ] = "",
    model: Model = DEFAULT_MODEL,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would come of it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send the feedback of an old log; sent again, it counts once.

    Exit 1 where a row was left out.
    """
    if format_ not in (AUTO, *LOG_FORMATS):
        raise CliError(f"--format is {format_!r}; known are {', '.join(LOG_FORMATS)}", Exit.usage)
    forecast, refused, shown = ImportForecast(), 0, list[BadLine]()
    settings = load_settings()
    with row_lines(source_file) as lines:
        given, form = with_form(lines, LOG_FORMATS.get(format_), detected_log)
        found = feedback_of(given, form, source=source or form.name, model=model)
        for one in found if dry_run else _sent(found, settings):
            if isinstance(one, BadLine):
                refused += 1
                if len(shown) < SHOWN:
                    shown.append(one)
            else:
                forecast.take(one)
    for bad in shown:
        typer.echo(f"line {bad.line}: {bad.reason}", err=True)
    counts = {
        "feedback": forecast.feedback,
        "anonymous": forecast.anonymous,
        "pairs": forecast.pairs,
        "unpaired": forecast.unpaired,
        "refused": refused,
    }
    if as_json:
        print_json({"format": form.name, "dry_run": dry_run, **counts})
    else:
        title = "Would come of it" if dry_run else "Sent; the aggregator makes of it"
        print_fields(f"{title} ({form.name})", counts)
    if refused:
        raise typer.Exit(Exit.failed)


def _sent(
    found: Iterator[LoggedFeedback | BadLine], settings: CliSettings
) -> Iterator[LoggedFeedback | BadLine]:
    """What was stored, and what the service or the form refused."""
    waiting: list[tuple[LoggedFeedback, list[Any]]] = []
    size = 0
    for one in found:
        if isinstance(one, BadLine):
            yield one
            continue
        items = [item.model_dump(mode="json", exclude_defaults=True) for item in one.submissions]
        more = len(json.dumps(items))
        if waiting and (len(waiting) >= BATCH or size + more > BATCH_BYTES):
            yield from _send(waiting, settings)
            waiting, size = [], 0
        waiting.append((one, items))
        size += more
    if waiting:
        yield from _send(waiting, settings)


def _send(
    batch: list[tuple[LoggedFeedback, list[Any]]], settings: CliSettings
) -> Iterator[LoggedFeedback | BadLine]:
    items = [(one, item) for one, its_items in batch for item in its_items]
    body = {"items": [item for _, item in items]}
    answer: Any = ask(
        settings, "feedback", "POST", "/v1/feedback/batch", body=body, timeout_s=TIMEOUT_S
    )
    reasons = {
        one.line: _reason(result)
        for (one, _), result in zip(items, answer["results"], strict=True)
        if "error" in result
    }
    for one, _ in batch:
        yield BadLine(one.line, reasons[one.line]) if one.line in reasons else one


def _reason(result: dict[str, Any]) -> str:
    error = result["error"]
    fields = "; ".join(f"{one['field']}: {one['rule']}" for one in error.get("errors", ()))
    return fields or str(error.get("detail") or error.get("title"))
