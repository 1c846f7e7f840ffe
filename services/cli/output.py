"""Output of the command: JSON for programs, tables for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

UNFOLDED = 10_000
"""Width of a table that goes into a pipe or a file: no cell is folded, so that grep finds it whole."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(data, ensure_ascii=False, indent=2, default=str))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table, or one line where it would be empty."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(show(cell)) for cell in row))
    console = Console(width=None if Console().is_terminal else UNFOLDED)
    if table.row_count:
        console.print(table)
    else:
        console.print(f"{title}: none", markup=False)


def print_fields(title: str, data: dict[str, Any]) -> None:
    """One object as a table of two columns."""
    print_table(title, ("field", "value"), list(data.items()))


def show(value: Any) -> str:
    """A cell."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case dict() | list() | tuple():
            return json.dumps(value, ensure_ascii=False, default=str)
        case _:
            return str(value)


def percent(weight: Any) -> str:
    """Basis points as a percentage."""
    return f"{int(weight) / 100:g} %"
