"""Export of examples as JSON Lines or CSV: a stream in bounded memory, page by page."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncGenerator
from enum import StrEnum
from typing import Any

import orjson
import structlog

from services.feedback.errors import FormatUnavailable
from services.feedback.read_model.listing import ExampleFilter, ExamplePlace
from services.feedback.read_model.queries import FoundPage, ReadModelQueries

log = structlog.get_logger(__name__)

PAGE_ROWS = 500
PAGE_BYTES = 4_000_000


class ExportFormat(StrEnum):
    """Formats of an export."""

    jsonl = "jsonl"
    csv = "csv"


MEDIA_TYPES = {
    ExportFormat.jsonl: "application/x-ndjson",
    ExportFormat.csv: "text/csv",
}
_ACCEPTED = {
    "application/x-ndjson": ExportFormat.jsonl,
    "application/jsonl": ExportFormat.jsonl,
    "text/csv": ExportFormat.csv,
    "*/*": ExportFormat.jsonl,
    "application/*": ExportFormat.jsonl,
    "text/*": ExportFormat.csv,
}
COLUMNS = (
    "kind", "id", "model", "version", "rejected_version", "at", "category", "segment", "locale",
    "prompt", "completion", "rejected", "label", "source", "feedback",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def accepted_format(accept: str) -> ExportFormat:
    """The first format of an Accept header that the service has; JSON Lines without one.

    Raises:
        FormatUnavailable: it has none of them.

    """
    named = [part.partition(";")[0].strip().lower() for part in accept.split(",") if part.strip()]
    for media_type in named or ["*/*"]:
        if media_type in _ACCEPTED:
            return _ACCEPTED[media_type]
    raise FormatUnavailable(
        f"no export as {accept[:200]}; ask for application/x-ndjson or text/csv, or send ?format="
    )


async def export(
    queries: ReadModelQueries,
    tenant: str,
    wanted: ExampleFilter,
    format_: ExportFormat,
    page: FoundPage,
) -> AsyncGenerator[bytes]:
    """All examples from `page` on, which is the first of the listing.

    Each page is a query of its own, so a slow reader keeps no state of the read model alive.
    """
    written = 0
    if format_ is ExportFormat.csv:
        yield _csv_lines([COLUMNS])
    while True:
        written += len(page.examples)
        if format_ is ExportFormat.csv:
            rows = (_csv_row(wanted.kind.value, orjson.loads(one.body)) for one in page.examples)
            yield _csv_lines(rows)
        else:
            yield b"".join(one.body.encode() + b"\n" for one in page.examples)
        if not page.more:
            break
        page = await next_page(queries, tenant, wanted, page.examples[-1].place)
    log.info("examples.exported", kind=wanted.kind.value, format=format_.value, rows=written)


async def next_page(
    queries: ReadModelQueries, tenant: str, wanted: ExampleFilter, after: ExamplePlace | None
) -> FoundPage:
    """A page of an export.

    Raises:
        FeedbackError: the read model cannot be read.

    """
    return await queries.page(tenant, wanted, after, limit=PAGE_ROWS, max_bytes=PAGE_BYTES)


def _csv_row(kind: str, body: dict[str, Any]) -> list[str]:
    context = body["context"]
    row = {
        "kind": kind,
        "id": body.get("pair_id") or body["trace_id"],
        "model": body["model"],
        "version": body.get("chosen_version", body.get("version")),
        "rejected_version": body.get("rejected_version"),
        "at": body.get("started_at") or body["created_at"],
        "category": context["category"],
        "segment": context["segment"],
        "locale": context["locale"],
        "prompt": orjson.dumps(body["messages"]).decode(),
        "completion": body.get("chosen", body.get("completion")),
        "rejected": body.get("rejected"),
        "label": body.get("label"),
        "source": body.get("source"),
        "feedback": orjson.dumps(body["feedback"]).decode() if "feedback" in body else None,
    }
    return [_cell(row[name]) for name in COLUMNS]


def _cell(value: Any) -> str:
    """A cell. A text that a spreadsheet would run as a formula gets an apostrophe before it."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case _:
            text = str(value)
            return f"'{text}" if text.startswith(_FORMULA) else text


def _csv_lines(rows: Any) -> bytes:
    written = io.StringIO()
    csv.writer(written).writerows(rows)
    return written.getvalue().encode()
