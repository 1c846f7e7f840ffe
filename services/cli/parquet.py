"""Parquet files of JSON rows, read and written in batches; needs pyarrow (the extra `parquet`).

A column has one type, so a field that a row lacks is null in the file, and nulls are left out when
it is read. Arguments and parameters of tools and labels, whose keys differ by row, are JSON texts
there. An object without fields is null, too: Parquet has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from services.cli.errors import CliError, Exit
from shared.contracts.conversation import compact_json

SUFFIX = ".parquet"
BATCH = 1_000
"""Rows that are held at once."""
_OF_ANY_KEYS = ("arguments", "parameters", "labels")


def parquet_lines(path: Path) -> Iterator[bytes]:
    """Each row of a file as a line of JSON.

    Raises:
        CliError: pyarrow is missing, or the file is no Parquet.
        OSError: the file cannot be read.

    """
    arrow, parquet = pyarrow_or_refuse()
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH):
                yield from (
                    orjson.dumps(_without_nulls(row), default=str) for row in batch.to_pylist()
                )
    except arrow.ArrowException as error:
        raise CliError(f"{path}: is no Parquet, or damaged: {error}", Exit.failed) from None


def write_parquet(lines: Path, to: Path) -> None:
    """Write a file of JSON lines as Parquet; reads it twice, once for the columns' types.

    Raises:
        CliError: pyarrow is missing, or a field has values that no one type holds.
        OSError: a file cannot be read or written.

    """
    arrow, parquet = pyarrow_or_refuse()
    try:
        schema = arrow.schema([])
        for rows in _batches(lines):
            found = arrow.schema(list(arrow.array(rows).type))
            schema = arrow.unify_schemas([schema, found], promote_options="permissive")
        with parquet.ParquetWriter(to, schema, compression="zstd") as writer:
            for rows in _batches(lines):
                columns = arrow.array(rows, type=arrow.struct(list(schema)))
                writer.write_batch(arrow.RecordBatch.from_struct_array(columns))
    except arrow.ArrowException as error:
        raise CliError(f"{to}: no Parquet columns for these rows: {error}", Exit.failed) from None


def require_pyarrow() -> None:
    """Refuse at once where Parquet cannot be read or written.

    Raises:
        CliError: pyarrow is missing.

    """
    pyarrow_or_refuse()


def pyarrow_or_refuse(what: str = "Parquet") -> tuple[Any, Any]:
    """pyarrow and its Parquet.

    Raises:
        CliError: it is missing.

    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise CliError(
            f"{what} needs pyarrow: install the extra, ratchet[parquet], or use JSONL", Exit.usage
        ) from None
    return pa, parquet


def _batches(path: Path) -> Iterator[list[dict[str, Any]]]:
    with path.open("rb") as lines:
        rows: Iterable[Any] = (_columns(orjson.loads(line)) for line in lines)
        while batch := list(islice(rows, BATCH)):
            yield batch


def _columns(value: Any) -> Any:
    if isinstance(value, list):
        return [_columns(one) for one in value]
    if not isinstance(value, dict):
        return value
    return (
        None
        if not value
        else {
            name: compact_json(one)
            if name in _OF_ANY_KEYS and isinstance(one, dict)
            else _columns(one)
            for name, one in value.items()
        }
    )


def _without_nulls(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {name: _without_nulls(one) for name, one in value.items() if one is not None}
