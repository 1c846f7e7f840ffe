"""Files of rows, read one after the other: JSONL, maybe compressed by gzip or zstd, or Parquet."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar, cast

from services.cli.errors import CliError, Exit
from services.cli.pair_formats.pair import BadPair
from services.cli.parquet import SUFFIX as PARQUET
from services.cli.parquet import parquet_lines, pyarrow_or_refuse

F = TypeVar("F")


@contextmanager
def row_lines(path: Path) -> Iterator[Iterable[bytes]]:
    """The rows of a file as lines of JSON.

    Raises:
        CliError: what is wrong with the file, also where it shows while it is read.

    """
    try:
        if path.suffix == PARQUET:
            yield parquet_lines(path)
            return
        with open_compressed(path, "rb") as lines:
            yield lines
    except BadPair as error:
        raise CliError(f"{path}: {error}", Exit.failed) from None
    except OSError as error:
        if error.errno is None:  # of zstd
            raise CliError(f"{path}: is cut or damaged: {error}", Exit.failed) from None
        raise CliError(
            f"{error.filename or path}: {error.strerror or error}", Exit.failed
        ) from None
    except (EOFError, zlib.error) as error:
        raise CliError(f"{path}: is cut or damaged: {error}", Exit.failed) from None


def open_compressed(path: Path, mode: Literal["rb", "wb"]) -> BinaryIO:
    """A file of bytes, through gzip where its name ends in .gz, zstd where it ends in .zst.

    Raises:
        CliError: zstd needs pyarrow, which is missing.
        OSError: the file cannot be opened.

    """
    if path.suffix == ".gz":
        return cast("BinaryIO", gzip.open(path, mode))
    if path.suffix != ".zst":
        return path.open(mode)
    arrow, _ = pyarrow_or_refuse(f"{path.name}: zstd")
    if mode == "rb":
        stream = arrow.CompressedInputStream(arrow.OSFile(str(path)), "zstd")
        return cast("BinaryIO", io.BufferedReader(stream))
    stream = arrow.CompressedOutputStream(arrow.OSFile(str(path), "wb"), "zstd")
    return cast("BinaryIO", io.BufferedWriter(stream))


def with_form(
    given: Iterable[bytes], known: F | None, detect: Callable[[bytes], F]
) -> tuple[Iterator[bytes], F]:
    """The lines, and the form that was named or that the first row has.

    Raises:
        BadPair: there is no row, or its form is not known.

    """
    lines = iter(given)
    if known is not None:
        return lines, known
    skipped: list[bytes] = []
    for line in lines:
        skipped.append(line)
        if line.strip():
            return chain(skipped, lines), detect(line)
    raise BadPair("no rows")
