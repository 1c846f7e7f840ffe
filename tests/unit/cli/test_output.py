"""Tables of the command: at any width of a terminal no word is broken."""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from services.cli.output import (
    AsJson,
    offer_formats,
    print_fields,
    print_json,
    print_known,
    print_table,
    table_of,
)

CLI = Path(__file__).parents[3] / "services" / "cli"
WIDTHS = (60, 80, 100, 200)
WORDS = (
    "0b6f8f4e-2c1d-4d0a-9d55-0a1b2c3d4e5f",
    "4bf92f3577b34da6a3ce929d0e0e4736",
    "assistant-v1.2-inverted",
    "2026-11-26T09:00:00+00:00",
    "ratchet.feedback-intake.default.v1",
    "train-assistant-20261126-6f1c2a9b",
    "–",
    "rejected",
)
TEXT = "win rate 48.1 % of 120 pairs, below 55 %; collect more votes or lower the learning rate"


def calls() -> list[tuple[str, tuple[str, ...]]]:
    """The columns of every table that a command prints, with where it does."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for path in sorted(CLI.rglob("*.py")):
        tree = ast.parse(path.read_text())
        constants = {
            target.id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id in ("print_table", "table_of") and path.name != "output.py":
                columns = node.args[1]
                columns = constants.get(getattr(columns, "id", ""), columns)
                texts = [
                    str(one.value) for one in ast.walk(columns) if isinstance(one, ast.Constant)
                ]
                found.append((f"{path.name}:{node.lineno}", tuple(texts) or ("a", "b", "c")))
            elif node.func.id in ("print_fields", "print_known"):
                found.append((f"{path.name}:{node.lineno}", ("field", "value")))
    return found


CALLS = calls()


def drawn(columns: tuple[str, ...], rows: list[list[str]], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(table_of("A title", columns, rows), crop=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def words_of(columns: tuple[str, ...], rows: list[list[str]]) -> Iterator[str]:
    """Words that are shown: a list of two columns has the first one as its labels, and no heading."""
    for cell in chain(() if len(columns) == 2 else columns, *rows):
        yield from cell.split()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("where", "columns"), CALLS, ids=[where for where, _ in CALLS])
def test_no_table_of_a_command_breaks_a_word(
    where: str, columns: tuple[str, ...], width: int
) -> None:
    rows = [
        [
            f"{WORDS[(place + number) % len(WORDS)]} {TEXT}"[: 40 + 60 * number]
            for place in range(len(columns))
        ]
        for number in range(3)
    ]
    shown = drawn(columns, rows, width).split()
    assert {*words_of(columns, rows)} <= {*shown}


@given(
    st.integers(1, 9).flatmap(
        lambda count: st.lists(
            st.lists(
                st.text(st.characters(codec="ascii", categories=("L", "N", "P")) | st.just(" ")),
                min_size=count,
                max_size=count,
            ),
            min_size=2,
            max_size=4,
        )
    ),
    st.integers(60, 200),
)
@example([["[/]", "[a]"], ["[red]", "[/a]"]], 60)
def test_whatever_is_in_a_table_its_words_are_whole(rows: list[list[str]], width: int) -> None:
    shown = drawn(tuple(rows[0]), rows[1:], width)
    assert all(word in shown for word in words_of(tuple(rows[0]), rows[1:]))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_table_is_no_wider_than_the_terminal(width: int) -> None:
    rows = [["assistant-v1.0", "stable", TEXT]]
    lines = drawn(("version", "state", "why"), rows, width).splitlines()
    assert max(map(len, lines)) <= width
    assert "┃" in "".join(lines)


def test_brackets_in_a_title_are_no_markup() -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=False)
    console.print(table_of("Registered [/v]", ("field", "value"), [["version", "assistant"]]))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines()[0].strip() == "Registered [/v]"


def test_where_the_words_do_not_fit_beside_one_another_each_row_is_a_list() -> None:
    shown = drawn(("job", "version", "asked"), [[*WORDS[:2], WORDS[3]], [*WORDS[:2], "never"]], 60)
    assert "┃" not in shown
    assert shown.splitlines() == [
        "A title",
        f"job      {WORDS[0]}",
        f"version  {WORDS[1]}",
        f"asked    {WORDS[3]}",
        "",
        f"job      {WORDS[0]}",
        f"version  {WORDS[1]}",
        "asked    never",
        "",
    ]


def test_fields_become_a_list_with_their_names_in_front() -> None:
    digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    shown = drawn(("field", "value"), [["adapter_sha256", digest], ["state", "stable"]], 60)
    assert shown.splitlines() == [
        "A title",
        f"adapter_sha256  {digest}",
        "state           stable",
        "",
    ]


def test_what_is_known_comes_in_the_order_asked_for_and_what_is_awaited_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = {"seed": 0, "parent": "", "metrics": {}, "report": None, "phase": "waiting"}
    print_known("job-1", data, order=("phase", "report"), awaited=("report", "metrics"))
    lines = [line.split("│")[1:3] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [tuple(map(str.strip, cells)) for cells in lines] == [
        ("phase", "waiting"),
        ("seed", "0"),
        ("not there yet", "report, metrics"),
    ]


def test_a_sparse_table_has_no_column_without_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [["a", "", None, False], ["b", "", None, True]]
    print_table("Jobs", ("job", "version", "why", "ended"), rows, sparse=True)
    shown = capsys.readouterr().out
    assert "version" not in shown
    assert "why" not in shown
    assert "ended" in shown
    print_table("Jobs", ("job", "version", "why", "ended"), rows)
    assert "version" in capsys.readouterr().out
    print_table("Jobs", ("job", "version"), [], sparse=True)
    assert capsys.readouterr().out == "Jobs: none\n"


SHOWN = {"name": "Zoë", "parts": [{"at": "2026-11-26", "share": 0.5}], "missing": None}


def show(*, as_json: AsJson = False) -> None:
    """Show."""
    (print_json if as_json else lambda data: print_fields("shown", data))(SHOWN)


@pytest.mark.parametrize(
    ("options", "read"),
    [
        (("--json",), json.loads),
        (("--output", "json"), json.loads),
        (("--output", "yaml"), yaml.safe_load),
        (("--output", "yaml", "--json"), yaml.safe_load),
    ],
)
def test_a_program_reads_the_form_that_it_asks_for(
    options: tuple[str, ...], read: Callable[[str], Any]
) -> None:
    printed = CliRunner().invoke(showing(), options).output
    assert read(printed) == SHOWN
    assert printed.startswith("{") == (read is json.loads)


def test_without_a_form_it_is_a_table_and_an_unknown_one_is_refused() -> None:
    for options in ((), ("--output", "table")):
        assert "field" in CliRunner().invoke(showing(), options).output
    refused = CliRunner().invoke(showing(), ("--output", "xml"))
    assert refused.exit_code == 2
    assert "yaml" in refused.output


def showing() -> typer.Typer:
    app = typer.Typer()
    app.command()(show)
    offer_formats(app)
    return app
