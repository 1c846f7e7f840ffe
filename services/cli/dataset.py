"""`ratchet dataset`: pairs and labelled answers from and into other tools' forms, labelled and varied."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Annotated

import typer

from services.cli.augment import augment
from services.cli.dataset_build import build_dataset
from services.cli.errors import CliError, Exit
from services.cli.label import label
from services.cli.pair_formats.convert import FORMATS, BadLine, converted, detected
from services.cli.pair_formats.pair import PairFormat
from services.cli.pair_formats.ratchet import RATCHET
from services.cli.parquet import SUFFIX as PARQUET
from services.cli.parquet import require_pyarrow, write_parquet
from services.cli.row_streams import open_maybe_gzip, row_lines, with_form
from services.cli.stored_dataset import diff_datasets, show_dataset

app = typer.Typer(
    no_args_is_help=True, help="Build, show, compare, import, export, label and augment datasets."
)
app.command("build")(build_dataset)
app.command("show")(show_dataset)
app.command("diff")(diff_datasets)
app.command()(label)
app.command()(augment)

SHOWN = 10
"""Bad rows that are printed."""
AUTO = "auto"
Source = Annotated[Path, typer.Argument(help="A JSONL file, maybe .gz, or .parquet.")]
Target = Annotated[
    Path, typer.Option("--to", help="The file to write: JSONL, maybe .gz, or .parquet.")
]
Strict = Annotated[bool, typer.Option(help="Write nothing where one row is bad.")]


@app.command("import")
def import_(
    source: Source,
    to: Target,
    *,
    format_: Annotated[str, typer.Option("--format", help=f"{', '.join(FORMATS)}.")] = AUTO,
    strict: Strict = False,
) -> None:
    """Pairs or labelled answers of another tool as Ratchet's rows, for `ratchet train --dataset`."""
    _convert(source, to, format_, RATCHET, strict=strict)


@app.command()
def export(
    source: Annotated[
        Path, typer.Argument(help="A dataset's train.jsonl, maybe .gz, or .parquet.")
    ],
    to: Target,
    *,
    format_: Annotated[str, typer.Option("--format", help=f"{', '.join(FORMATS)}.")],
    strict: Strict = False,
) -> None:
    """A dataset's pairs or labelled answers in the form of another tool."""
    _convert(source, to, RATCHET.name, _named(format_), strict=strict)


def _named(name: str) -> PairFormat:
    if name not in FORMATS:
        raise CliError(f"--format is {name!r}; known are {', '.join(FORMATS)}", Exit.usage)
    return FORMATS[name]


def _convert(source: Path, to: Path, name: str, target: PairFormat, *, strict: bool) -> None:
    known = None if name == AUTO else _named(name)
    if to.suffix == PARQUET:
        require_pyarrow()
    partial = to.with_name(f".partial-{to.name}")  # keeps the suffix by which it is compressed
    columns = to.with_name(f".columns-{to.name}")
    written, bad, shown = 0, 0, deque[BadLine](maxlen=SHOWN)
    try:
        with row_lines(source) as lines:
            with open_maybe_gzip(partial, "wb") as out:
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
