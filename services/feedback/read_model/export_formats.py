"""Formats of an export of examples: JSON Lines, CSV and Parquet, each written page by page."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from importlib import import_module
from typing import Any, Protocol

import orjson

from services.feedback.errors import FormatUnavailable
from services.feedback.read_model.queries import FoundExample


class ExportFormat(StrEnum):
    """Formats of an export."""

    jsonl = "jsonl"
    csv = "csv"
    parquet = "parquet"


MEDIA_TYPES = {
    ExportFormat.jsonl: "application/x-ndjson",
    ExportFormat.csv: "text/csv",
    ExportFormat.parquet: "application/vnd.apache.parquet",
}
COLUMNS = (
    "kind", "id", "model", "version", "rejected_version", "at", "category", "segment", "locale",
    "prompt", "completion", "rejected", "label", "source", "feedback",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class ExportWriter(Protocol):
    """Writes pages of examples in one format."""

    def begin(self) -> bytes:
        """What stands before the first row."""
        ...

    def rows(self, kind: str, examples: Sequence[FoundExample], /) -> bytes:
        """A page of rows."""
        ...

    def end(self) -> bytes:
        """What stands behind the last row."""
        ...


def export_writer(format_: ExportFormat) -> ExportWriter:
    """A writer of the format.

    Raises:
        FormatUnavailable: Parquet, where pyarrow is not installed.

    """
    writers: dict[ExportFormat, Callable[[], ExportWriter]] = {
        ExportFormat.jsonl: JsonLines,
        ExportFormat.csv: CsvTable,
        ExportFormat.parquet: ParquetTable,
    }
    return writers[format_]()


class JsonLines:
    """Each example's event as a line."""

    def begin(self) -> bytes:
        """See ExportWriter.begin."""
        return b""

    def rows(self, _: str, examples: Sequence[FoundExample], /) -> bytes:
        """See ExportWriter.rows."""
        return b"".join(one.body.encode() + b"\n" for one in examples)

    def end(self) -> bytes:
        """See ExportWriter.end."""
        return b""


class CsvTable:
    """A table of COLUMNS, safe to open in a spreadsheet."""

    def begin(self) -> bytes:
        """See ExportWriter.begin."""
        return _csv_lines([COLUMNS])

    def rows(self, kind: str, examples: Sequence[FoundExample], /) -> bytes:
        """See ExportWriter.rows."""
        return _csv_lines(
            [_cell(value) for value in _row(kind, orjson.loads(one.body)).values()]
            for one in examples
        )

    def end(self) -> bytes:
        """See ExportWriter.end."""
        return b""


class ParquetTable:
    """A table of COLUMNS, texts but for the label; a page is a row group."""

    def __init__(self) -> None:
        try:
            arrow: Any = import_module("pyarrow")
            parquet: Any = import_module("pyarrow.parquet")
        except ImportError:
            raise FormatUnavailable(
                "Parquet needs pyarrow, which this service does not have; install the extra, "
                "ratchet[parquet], ask for JSON Lines, or use ratchet feedback export"
            ) from None
        self._arrow = arrow
        texts = [(name, arrow.bool_() if name == "label" else arrow.string()) for name in COLUMNS]
        self._sink = _Drain()
        self._writer: Any = parquet.ParquetWriter(
            self._sink, arrow.schema(texts), compression="zstd"
        )

    def begin(self) -> bytes:
        """See ExportWriter.begin."""
        return self._sink.drain()

    def rows(self, kind: str, examples: Sequence[FoundExample], /) -> bytes:
        """See ExportWriter.rows."""
        found = [_row(kind, orjson.loads(one.body)) for one in examples]
        if found:
            self._writer.write_table(
                self._arrow.Table.from_pylist(found, schema=self._writer.schema)
            )
        return self._sink.drain()

    def end(self) -> bytes:
        """See ExportWriter.end."""
        self._writer.close()
        return self._sink.drain()


class _Drain(io.RawIOBase):
    """A file whose bytes are taken out as they are written."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._taken = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._held += data
        return len(data)

    def tell(self) -> int:
        return self._taken + len(self._held)

    def drain(self) -> bytes:
        """What was written since the last call."""
        found = bytes(self._held)
        self._taken += len(found)
        self._held.clear()
        return found


def _row(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    """An example as a row of COLUMNS."""
    context = body["context"]
    return {
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


def _csv_lines(rows: Iterable[Iterable[str]]) -> bytes:
    written = io.StringIO()
    csv.writer(written).writerows(rows)
    return written.getvalue().encode()
