"""Output of the command: JSON for programs, tables for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

UNFOLDED = 10_000
"""Width of a table that goes into a pipe or a file: no cell is folded, so that grep finds it whole."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(data, ensure_ascii=False, indent=2, default=str))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table, or one line where it would be empty."""
    console_of_output().print(table_of(title, columns, rows))


def console_of_output() -> Console:
    """Standard output: the terminal as wide as it is, anything else UNFOLDED."""
    from rich.console import Console

    return Console(width=None if Console().is_terminal else UNFOLDED)


def table_of(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table | Text:
    """A table to print, or one line where it would be empty."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(show(cell)) for cell in row))
    return table if table.row_count else Text(f"{title}: none")


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
