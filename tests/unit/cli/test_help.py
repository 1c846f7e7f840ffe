"""What the shell and a reader of --help get: completion, and examples that the commands take."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from typer.testing import CliRunner

from services.cli.__main__ import NARROW, app, help_style
from services.cli.examples import EXAMPLES
from shared.revision import VERSION

ROOT: Any = typer.main.get_command(app)
NO_VERBS = {"A", "All", "An", "Each", "Every", "Everything", "How", "The", "What", "Whether", "Who"}
UNITS = re.compile(
    r"seconds|hours|days|a minute|a second|percent|0 to 1|share|tokens|temperature|seed|bound|rate|"
    r"number|labels|prompts|items|examples|decisions|oldest|pairs|answers|requests|resamples|score|"
    r"difference",
    re.IGNORECASE,
)


def named(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every group and command below one, by the words that call it."""
    for name, one in getattr(command, "commands", {}).items():
        path = (*words, name)
        yield " ".join(path), one
        yield from named(one, path)


def commands_of(command: Any) -> Iterator[Any]:
    return (one for _, one in named(command) if not hasattr(one, "commands"))


ALL = dict(named(ROOT))


def test_every_command_and_group_has_an_example_and_no_other() -> None:
    assert list(EXAMPLES) == list(dict.fromkeys(EXAMPLES))
    assert EXAMPLES.keys() == ALL.keys()


@pytest.mark.parametrize("name", ALL)
def test_a_help_ends_with_an_example_that_the_command_takes(name: str) -> None:
    example = EXAMPLES[name]
    assert ALL[name].epilog == f"Example: ratchet {example}"
    assert example == name or example.startswith(f"{name} ")
    command, words = ROOT, shlex.split(example)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    command.make_context(name, words)


@pytest.mark.parametrize("name", ALL)
def test_a_help_begins_with_what_the_command_does(name: str) -> None:
    first = (ALL[name].help or "").partition("\n")[0]
    assert first.endswith("."), first
    assert first.split()[0] not in NO_VERBS, first
    assert len(first) <= 100, first


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_is_explained_and_every_number_has_a_unit(name: str) -> None:
    for parameter in ALL[name].params:
        if parameter.name == "help":
            continue
        assert parameter.help, parameter.name
        if parameter.type_descriptor.annotation in (int, float):
            assert UNITS.search(parameter.help), f"{parameter.name}: {parameter.help}"


def options_of(command: Any) -> set[str]:
    return {
        option
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("-")
    }


WIDEST = sorted(ALL, key=lambda name: -max(map(len, options_of(ALL[name])), default=0))[:12]


@pytest.mark.parametrize("name", WIDEST)
def test_no_help_cuts_a_word(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", NARROW)
    monkeypatch.setattr(app, "rich_markup_mode", help_style(NARROW))
    shown = CliRunner().invoke(app, [*name.split(), "--help"]).output
    assert not re.search(r"\w…", shown), shown
    assert options_of(ALL[name]) <= {*re.split(r"[\s,/]+", shown)}, shown


def test_in_a_narrow_terminal_help_is_plain_and_its_words_are_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(app, "rich_markup_mode", help_style(60))
    for name, command in named(typer.main.get_command(app)):
        context = command.make_context(name, [], resilient_parsing=True)
        shown = command.get_help(context)
        assert max(map(len, shown.splitlines())) <= 60, shown
        assert options_of(command) <= {*re.split(r"[\s,/]+", shown)}, shown


def test_every_command_has_a_row_in_the_readme() -> None:
    text = (Path(__file__).parents[3] / "services/cli/README.md").read_text()
    named = [
        re.findall(r"[\w-]+", line.partition(" | ")[0])
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    for name, command in ALL.items():
        words = name.split()
        if not hasattr(command, "commands"):
            assert any(row[0] == words[0] and {*words} <= {*row} for row in named), name


def test_the_version_is_that_of_the_package_and_of_the_chart() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    assert re.fullmatch(rf"ratchet {re.escape(VERSION)} \(revision [\w-]+\)\n", done.output)
    root = Path(__file__).parents[3]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((root / "deploy/k8s/helm/ratchet/Chart.yaml").read_text())
    assert project["version"] == chart["appVersion"] == VERSION


def test_what_prints_a_table_prints_json_and_yaml_too() -> None:
    assert "--output" in ROOT.epilog
    tables = 0
    for command in commands_of(ROOT):
        names = inspect.unwrap(command.callback).__code__.co_names
        options = {name for parameter in command.params for name in parameter.opts}
        assert ("--json" in options) == ("--output" in options), command.name
        if {"print_table", "print_fields", "print_known"} & set(names):
            tables += 1
            assert {"--json", "--output"} <= options, command.name
    assert tables


def test_the_shell_completes_commands() -> None:
    asked = {"_RATCHET_COMPLETE": "complete_bash", "COMP_WORDS": "ratchet ro", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "from services.cli.__main__ import app; app(prog_name='ratchet')"],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["rollout"]
