"""The demo's steps, as far as they stand without a stack."""

from __future__ import annotations

from typing import Any

import pytest
import typer.main

from demo import steps
from demo.steps import Demo
from services.cli.__main__ import app


async def test_the_command_knows_every_option_that_a_training_is_asked_for_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[str] = []

    async def ratchet(_: Any, *arguments: str) -> None:
        given.extend(arguments)

    monkeypatch.setattr(steps, "ratchet", ratchet)
    demo = Demo.__new__(Demo)
    demo._environment = {}
    await demo._train("sft", "assistant-v1.0", "--base", "b")
    command: Any = typer.main.get_command(app)
    known = {name for one in command.commands[given[0]].params for name in one.opts}
    assert {one for one in given if one.startswith("--")} <= known
