from __future__ import annotations

import sys
from pathlib import Path

import pytest

import demo.__main__ as demo_main
from deploy.starter.model import Starter


class FakeStack:
    """A stack that was there before, or was not."""

    def __init__(self, *, started: bool) -> None:
        self.started = started
        self.downs = 0

    def up(self) -> None:
        """Nothing to start."""

    def down(self, *, delete_data: bool) -> None:
        assert delete_data
        self.downs += 1

    def url(self, name: str) -> str:
        return f"http://{name}"


@pytest.mark.parametrize(
    ("arguments", "started", "downs"),
    [([], True, 1), ([], False, 0), (["--keep"], True, 0), (["--keep"], False, 0)],
)
def test_the_demo_ends_the_stack_that_it_started_unless_told_to_keep_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    started: bool,
    downs: int,
) -> None:
    def starter(_: object) -> Starter:
        return Starter("base", Path("rows"))

    async def steps(*_: object) -> int:
        return 0

    stack = FakeStack(started=started)
    monkeypatch.setattr(sys, "argv", ["demo", "--run-dir", str(tmp_path), *arguments])
    monkeypatch.setattr(demo_main.signal, "signal", lambda *_: None)
    monkeypatch.setattr(demo_main, "Stack", lambda *_, **__: stack)
    monkeypatch.setattr(demo_main, "prepare_starter", starter)
    monkeypatch.setattr(demo_main, "_run", steps)
    assert demo_main.main() == 0
    assert stack.downs == downs
    assert ("the stack stays up" in capsys.readouterr().out) == (not downs)
