"""Export of examples: a stream in bounded memory, page by page."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import structlog

from services.feedback.errors import FormatUnavailable
from services.feedback.read_model.export_formats import ExportFormat, ExportWriter
from services.feedback.read_model.listing import ExampleFilter, ExamplePlace
from services.feedback.read_model.queries import FoundPage, ReadModelQueries

log = structlog.get_logger(__name__)

PAGE_ROWS = 500
PAGE_BYTES = 4_000_000


_ACCEPTED = {
    "application/x-ndjson": ExportFormat.jsonl,
    "application/jsonl": ExportFormat.jsonl,
    "text/csv": ExportFormat.csv,
    "application/vnd.apache.parquet": ExportFormat.parquet,
    "*/*": ExportFormat.jsonl,
    "application/*": ExportFormat.jsonl,
    "text/*": ExportFormat.csv,
}


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
        f"no export as {accept[:200]}; ask for application/x-ndjson, text/csv or "
        "application/vnd.apache.parquet, or send ?format="
    )


async def export(
    queries: ReadModelQueries,
    tenant: str,
    wanted: ExampleFilter,
    writer: ExportWriter,
    page: FoundPage,
) -> AsyncGenerator[bytes]:
    """All examples from `page` on, which is the first of the listing.

    Each page is a query of its own, so a slow reader keeps no state of the read model alive.
    """
    written = 0
    yield writer.begin()
    while True:
        written += len(page.examples)
        yield writer.rows(wanted.kind.value, page.examples)
        if not page.more:
            break
        page = await next_page(queries, tenant, wanted, page.examples[-1].place)
    yield writer.end()
    log.info(
        "examples.exported", kind=wanted.kind.value, format=type(writer).__name__, rows=written
    )


async def next_page(
    queries: ReadModelQueries, tenant: str, wanted: ExampleFilter, after: ExamplePlace | None
) -> FoundPage:
    """A page of an export.

    Raises:
        FeedbackError: the read model cannot be read.

    """
    return await queries.page(tenant, wanted, after, limit=PAGE_ROWS, max_bytes=PAGE_BYTES)
