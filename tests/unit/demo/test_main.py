from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import pytest

import demo.__main__ as demo_main
from demo.places import places
from deploy.local.errors import StackError
from deploy.local.stack import Stack
from deploy.starter.model import Starter


class FakeStack:
    """A stack that was there before, or was not."""

    def __init__(self, *, started: bool, ends: BaseException | None = None) -> None:
        self.started = started
        self.ends = ends
        self.downs = 0
        self.deleted = False

    def up(self) -> None:
        """Nothing to start; ends as told."""
        if self.ends is not None:
            raise self.ends

    def down(self, *, delete_data: bool) -> None:
        self.deleted = delete_data
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
    monkeypatch.setattr(demo_main, "places", lambda _: ["console  http://rollout/"])
    assert demo_main.main() == 0
    assert stack.downs == downs
    assert stack.deleted == bool(downs)
    assert ("the stack stays up" in capsys.readouterr().out) == (not downs)


def test_a_stack_to_play_with_is_made_by_the_demo_once_and_started_from_its_data_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, fresh, statuses = [], [], [1, 0]

    async def steps(*_: object) -> int:
        runs.append(tmp_path)
        return statuses.pop(0)

    def stack(*_: object, **options: object) -> FakeStack:
        fresh.append(options["fresh"])
        return FakeStack(started=True)

    (tmp_path / "data").mkdir()
    monkeypatch.setattr(sys, "argv", ["demo", "--run-dir", str(tmp_path), "--play"])
    monkeypatch.setattr(demo_main.signal, "signal", lambda *_: None)
    monkeypatch.setattr(demo_main, "Stack", stack)
    monkeypatch.setattr(demo_main, "prepare_starter", lambda _: Starter("base", Path("rows")))
    monkeypatch.setattr(demo_main, "_run", steps)
    monkeypatch.setattr(demo_main, "places", lambda _: ["console  http://rollout/"])
    assert [demo_main.main() for _ in range(4)] == [1, 0, 0, 0]
    assert fresh == [True, True, False, False], "a demo that failed leaves nothing to start from"
    assert len(runs) == 2
    assert capsys.readouterr().out.count("console  http://rollout/") == 4


@pytest.mark.parametrize("ends", [KeyboardInterrupt(), StackError("kafka is not ready")])
@pytest.mark.parametrize(
    ("arguments", "complete", "while_starting"),
    [
        ([], False, True),
        ([], False, False),
        (["--keep"], False, True),
        (["--keep"], False, False),
        (["--play"], False, True),
        (["--play"], False, False),
        (["--play"], True, True),
    ],
)
def test_an_interrupted_or_failed_run_leaves_no_stack_up_without_saying_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ends: BaseException,
    arguments: list[str],
    complete: bool,
    while_starting: bool,
) -> None:
    async def steps(*_: object) -> int:
        raise ends

    (tmp_path / "data").mkdir()
    if complete:
        (tmp_path / "data" / "complete").touch()
    stack = FakeStack(started=True, ends=ends if while_starting else None)
    monkeypatch.setattr(sys, "argv", ["demo", "--run-dir", str(tmp_path), *arguments])
    monkeypatch.setattr(demo_main.signal, "signal", lambda *_: None)
    monkeypatch.setattr(demo_main, "Stack", lambda *_, **__: stack)
    monkeypatch.setattr(demo_main, "prepare_starter", lambda _: Starter("base", Path("rows")))
    monkeypatch.setattr(demo_main, "_run", steps)
    monkeypatch.setattr(demo_main, "places", lambda _: ["console  http://rollout/"])
    interrupted = isinstance(ends, KeyboardInterrupt)
    assert demo_main.main() == (130 if interrupted else 1)
    said = capsys.readouterr().out
    keeps = arguments == ["--keep"] or (arguments == ["--play"] and not interrupted)
    assert stack.downs == (not keeps)
    assert ("stopping the stack" in said) == (not keeps)
    assert (f"make down RUN_DIR={tmp_path} ends it" in " ".join(said.split())) == keeps
    assert stack.deleted == (not keeps and not complete), "what the demo made is kept"


def test_every_place_is_named_and_a_voting_page_that_invites_nobody_says_why() -> None:
    unreachable = FakeStack(started=True)
    shown = dict(line.split("  ", 1) for line in places(cast("Stack", unreachable)))
    assert list(shown) == ["voting page", "console", "Prometheus", "gateway", "command"]
    assert "no invite: " in shown["voting page"]
    assert "http://rollout/" in shown["console"]
