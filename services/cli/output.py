"""Output of the command: JSON or YAML for programs, tables for people."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table
    from rich.text import Text

UNFOLDED = 10_000
"""Width of a table that goes into a pipe or a file: no cell is folded, so that grep finds it whole."""
BORDER = 3
"""Characters that a table draws beside each cell: one border, two of padding."""
MAX_ROW_LINES = 8
"""Lines of a table's tallest row; a taller one is easier to read as a list."""
MIN_CELL = 20
"""Least width of a value in a list."""

NOT_YET = "not there yet"
"""Name of the line with fields that come later."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Format: TypeAlias = Literal["table", "json", "yaml"]
AsFormat = Annotated[Format, typer.Option("--output", help="Print in this form.")]
_FORMAT: ContextVar[Format] = ContextVar("format", default="json")


def offer_formats(app: typer.Typer) -> None:
    """Give every command below `app` that takes --json the option --output, too."""
    for command in app.registered_commands:
        if command.callback and "as_json" in inspect.signature(command.callback).parameters:
            command.callback = _in_a_format(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            offer_formats(group.typer_instance)


def _in_a_format(callback: Callable[..., Any]) -> Callable[..., Any]:
    """The command with one option more, by which `print_json` prints what it is handed."""

    @wraps(callback)
    def command(*, as_json: bool, output: Format, **given: Any) -> Any:
        token = _FORMAT.set("yaml" if output == "yaml" else "json")
        try:
            return callback(**given, as_json=as_json or output != "table")
        finally:
            _FORMAT.reset(token)

    signature = inspect.signature(callback, eval_str=True)
    option = inspect.Parameter(
        "output", inspect.Parameter.KEYWORD_ONLY, default="table", annotation=AsFormat
    )
    offered = signature.replace(parameters=[*signature.parameters.values(), option])
    vars(command)["__signature__"] = offered
    return command


def print_json(data: Any) -> None:
    """One document on standard output: JSON, or YAML where --output asks for it."""
    text = json.dumps(data, ensure_ascii=False, indent=2, default=str)
    if _FORMAT.get() == "json":
        typer.echo(text)
        return
    import yaml

    typer.echo(yaml.safe_dump(json.loads(text), sort_keys=False, allow_unicode=True), nl=False)


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, sparse: bool = False
) -> None:
    """A table, or one line where it would be empty; of a `sparse` one no column without a value."""
    found = list(rows)
    kept = [
        place
        for place in range(len(columns))
        if not (sparse and found) or not all(is_empty(row[place]) for row in found)
    ]
    shown = [[row[place] for place in kept] for row in found]
    table = table_of(title, [columns[place] for place in kept], shown)
    console_of_output().print(table, crop=False)


def console_of_output() -> Console:
    """Standard output: the terminal as wide as it is, anything else UNFOLDED."""
    from rich.console import Console

    return Console(width=None if Console().is_terminal else UNFOLDED)


def table_of(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Sheet:
    """A table to print, or one line where it would be empty."""
    return Sheet(title, tuple(columns), [[show(cell) for cell in row] for row in rows])


def print_fields(title: str, data: dict[str, Any]) -> None:
    """One object as a table of two columns."""
    print_table(title, ("field", "value"), list(data.items()))


def print_known(
    title: str, data: Mapping[str, Any], *, order: Sequence[str] = (), awaited: Sequence[str] = ()
) -> None:
    """One object's fields that have a value, as a table of two columns; JSON has all of them.

    Args:
        title: What it is.
        data: Its fields by the names that JSON has.
        order: Fields that a reader wants first; the others follow as they come.
        awaited: Fields that come later; those without a value are named in one line.

    """
    first = [name for name in order if name in data]
    names = [*first, *(name for name in data if name not in order)]
    known = [(name, data[name]) for name in names if not is_empty(data[name])]
    missing = [name for name in awaited if is_empty(data.get(name))]
    if missing:
        known.append((NOT_YET, ", ".join(missing)))
    print_table(title, ("field", "value"), known)


def is_empty(value: Any) -> bool:
    """Whether a field has no value: none, an empty text, an empty list or mapping."""
    return value is None or (isinstance(value, str | dict | list | tuple) and not value)


@dataclass(frozen=True, slots=True)
class Sheet:
    """Rows that are drawn by the width there is: as a table, or below one another as a list.

    A table breaks lines between words only. Where its words do not fit beside one another, or a row
    would be taller than MAX_ROW_LINES, each row becomes a list of `column  cell`; a table of two
    columns becomes one such list of its rows.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it, as rich asks of what it prints."""
        from rich.text import Text

        if not self.rows:
            yield Text(f"{self.title}: none")
            return
        room = options.max_width - (BORDER * len(self.columns) + 1)
        widths = self._widths(room)
        if widths is None:
            yield from self._lists(console, options.max_width)
        else:
            yield self._table(widths)

    def _widths(self, room: int) -> list[int] | None:
        """Each column's width, None where a table would break words or be too tall."""
        from rich.cells import cell_len

        cells = list(zip(self.columns, *self.rows, strict=True))
        least = [
            max(1, *(cell_len(word) for cell in column for word in _words(cell)))
            for column in cells
        ]
        whole = [
            max(cell_len(line) for cell in column for line in _lines(cell)) for column in cells
        ]
        if sum(whole) <= room:
            return whole
        spare = room - sum(least)
        if spare < 0:
            return None
        widths = least
        for _ in range(spare):
            tallest = max(range(len(widths)), key=lambda place: whole[place] / widths[place])
            widths[tallest] += 1
        tall = max(full / width for full, width in zip(whole, widths, strict=True))
        return widths if tall <= MAX_ROW_LINES else None

    def _table(self, widths: Sequence[int]) -> Table:
        from rich.table import Table
        from rich.text import Text

        # As Text, for rich takes brackets in a str for its markup.
        table = Table(title=Text(self.title, style="bold"), title_justify="left")
        for column, width in zip(self.columns, widths, strict=True):
            table.add_column(Text(column), width=width)
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def _lists(self, console: Console, width: int) -> Iterator[Text]:
        from rich.cells import cell_len, set_cell_size
        from rich.text import Text

        if len(self.columns) == 2:
            lists = [[(name, value) for name, value in self.rows]]
        else:
            lists = [list(zip(self.columns, row, strict=True)) for row in self.rows]
        indent = 2 + max(cell_len(name) for one in lists for name, _ in one)
        yield Text(self.title, style="bold")
        for one in lists:
            for name, value in one:
                folded = Text(value).wrap(console, max(width - indent, MIN_CELL), overflow="ignore")
                for line, label in zip_longest(folded, [name], fillvalue=""):
                    text = f"{set_cell_size(str(label), indent)}{str(line).rstrip()}"
                    yield Text(text, no_wrap=True, overflow="ignore")
            yield Text()


def _lines(cell: str) -> list[str]:
    return cell.splitlines() or [""]


def _words(cell: str) -> list[str]:
    return cell.split() or [""]


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
            return json.dumps(_set(value), ensure_ascii=False, default=str)
        case _:
            return str(value)


def _set(value: Any) -> Any:
    """The value without fields that are not set."""
    match value:
        case dict():
            return {name: _set(field) for name, field in value.items() if field is not None}
        case list() | tuple():
            return [_set(one) for one in value]
        case _:
            return value


def percent(weight: Any) -> str:
    """Basis points as a percentage."""
    return f"{int(weight) / 100:g} %"
