"""What the shell and a reader of --help get: completion, and examples that the commands take."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from services.cli.__main__ import GROUPS, app

ROOT: Any = typer.main.get_command(app)


@pytest.mark.parametrize("name", GROUPS)
def test_the_help_of_a_group_ends_with_an_example_that_it_takes(name: str) -> None:
    example = GROUPS[name][1]
    assert ROOT.commands[name].epilog == f"Example: ratchet {example}"
    command, words = ROOT, shlex.split(example)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    command.make_context(name, words)


def commands_of(command: Any) -> Iterator[Any]:
    for one in getattr(command, "commands", {}).values():
        yield from commands_of(one)
    if not hasattr(command, "commands"):
        yield command


def test_what_prints_a_table_prints_json_too() -> None:
    assert "--json" in ROOT.epilog
    for command in commands_of(ROOT):
        names = command.callback.__code__.co_names
        if {"print_table", "print_fields"} & set(names):
            options = {name for parameter in command.params for name in parameter.opts}
            assert "--json" in options, command.name


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
