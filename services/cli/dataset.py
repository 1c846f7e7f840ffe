"""`ratchet dataset`: pairs and labelled answers from and into other tools' forms, labelled and varied."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli.augment import augment
from services.cli.dataset_build import build_dataset
from services.cli.dataset_convert import AUTO, convert_file, named_format
from services.cli.label import label
from services.cli.pair_formats.convert import FORMATS
from services.cli.pair_formats.ratchet import RATCHET
from services.cli.stored_dataset import diff_datasets, show_dataset
from services.cli.target_files import require_writable

app = typer.Typer(
    no_args_is_help=True, help="Build, show, compare, import, export, label and augment datasets."
)
app.command("build")(build_dataset)
app.command("show")(show_dataset)
app.command("diff")(diff_datasets)
app.command()(label)
app.command()(augment)

Source = Annotated[Path, typer.Argument(help="A JSONL file, maybe .gz or .zst, or .parquet.")]
Target = Annotated[
    Path, typer.Option("--to", help="The file to write: JSONL, maybe .gz or .zst, or .parquet.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Write nothing where one row is bad.")]


@app.command("import")
def import_(
    source: Source,
    to: Target,
    *,
    format_: Annotated[str, typer.Option("--format", help=f"{', '.join(FORMATS)}.")] = AUTO,
    strict: Strict = False,
) -> None:
    """Write another tool's pairs or labelled answers as rows for `ratchet train --dataset`."""
    require_writable("--to", to)
    convert_file(source, to, format_, RATCHET, strict=strict)


@app.command()
def export(
    source: Annotated[
        Path, typer.Argument(help="A dataset's train.jsonl, maybe .gz or .zst, or .parquet.")
    ],
    to: Target,
    *,
    format_: Annotated[str, typer.Option("--format", help=f"{', '.join(FORMATS)}.")],
    strict: Strict = False,
) -> None:
    """Write a dataset's pairs or labelled answers in the form of another tool."""
    require_writable("--to", to)
    convert_file(source, to, RATCHET.name, named_format(format_), strict=strict)
