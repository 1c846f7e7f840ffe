"""Conversion of dataset files between tools' forms, streamed."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from services.cli.errors import CliError, Exit
from services.cli.pair_formats.convert import FORMATS, BadLine, converted, detected
from services.cli.pair_formats.pair import PairFormat
from services.cli.parquet import SUFFIX as PARQUET
from services.cli.parquet import require_pyarrow, write_parquet
from services.cli.row_streams import open_compressed, row_lines, with_form

SHOWN = 10
"""Bad rows that are printed."""
AUTO = "auto"


def named_format(name: str) -> PairFormat:
    """A form by its name.

    Raises:
        CliError: there is none of that name.

    """
    if name not in FORMATS:
        raise CliError(f"--format is {name!r}; known are {', '.join(FORMATS)}", Exit.usage)
    return FORMATS[name]


def convert_file(source: Path, to: Path, name: str, target: PairFormat, *, strict: bool) -> None:
    """Write a file's rows in another form, row by row; bad ones are named and left out.

    Args:
        source: JSONL, maybe .gz or .zst, or .parquet.
        to: The same; replaced once it is whole.
        name: Form of the source, or `AUTO`.
        target: Form to write.
        strict: Write nothing where one row is bad.

    Raises:
        CliError: an unknown form, a file that cannot be read, or nothing to write.

    """
    known = None if name == AUTO else named_format(name)
    if to.suffix == PARQUET:
        require_pyarrow()
    partial = to.with_name(f".partial-{to.name}")  # keeps the suffix by which it is compressed
    columns = to.with_name(f".columns-{to.name}")
    written, bad, shown = 0, 0, deque[BadLine](maxlen=SHOWN)
    try:
        with row_lines(source) as lines, _enough_room(to):
            with open_compressed(partial, "wb") as out:
                rows, form = with_form(lines, known, detected)
                for one in converted(rows, form, target):
                    if isinstance(one, BadLine):
                        bad += 1
                        if bad <= SHOWN:
                            shown.append(one)
                    else:
                        written += 1
                        out.write(one)
            refused = not written or (strict and bad)
            if not refused and to.suffix == PARQUET:
                write_parquet(partial, columns)
                columns.replace(to)
            elif not refused:
                partial.replace(to)
    finally:
        partial.unlink(missing_ok=True)
        columns.unlink(missing_ok=True)
    for one in shown:
        typer.echo(f"line {one.line}: {one.reason}", err=True)
    typer.echo(f"{form.name} to {target.name}: {written} rows, {bad} left out", err=True)
    if refused:
        raise CliError(f"{to} was not written", Exit.failed)


@contextmanager
def _enough_room(to: Path) -> Iterator[None]:
    """Name the file that a full disk has no room for, not the one that is read meanwhile."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CliError(
            f"{to}: was not written, as {to.parent} is full; free some, or name a file on a larger "
            "disk",
            Exit.failed,
        ) from None
