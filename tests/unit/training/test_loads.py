"""Loads of models: told of while they move, silent while they hang."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from mmap import mmap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.training.trainers import loads
from services.training.trainers.job import Progress, StageProgress, noted_steps
from services.training.trainers.loads import MOVED_BYTES, ModelLoad, telling, told
from tests.support.waiting import wait_until


def steps(folder: Path) -> list[StageProgress]:
    path = folder / "progress.jsonl"
    return noted_steps(path.read_bytes()) if path.exists() else []


class Looks:
    """Stands in for the pauses between looks: something happens in each, then the load ends."""

    def __init__(self, *happens: Callable[[], object]) -> None:
        self._happens = iter(happens)

    def wait(self, _: float) -> bool:
        happens = next(self._happens, None)
        if happens is not None:
            happens()
        return happens is None


def read(count: int) -> None:
    with Path("/dev/zero").open("rb", buffering=0) as zeros:
        for _ in range(count // 4096):
            zeros.read(4096)


def watched(folder: Path, *happens: Callable[[ModelLoad], object]) -> list[StageProgress]:
    """What is told of a load in which this happens."""
    load = ModelLoad("loading base", "dpo", Progress(folder))
    load.ended = Looks(*(lambda one=one: one(load) for one in happens))  # type: ignore[assignment]
    load.watch()
    return steps(folder)


def test_a_load_is_told_of_while_bytes_move(tmp_path: Path) -> None:
    first, second = watched(tmp_path, *[lambda _: read(2 * MOVED_BYTES)] * 2)
    assert (first.stage, first.preparing, first.total) == ("dpo", "loading base", 0)
    assert first.loading_s is not None
    assert second.loading_s is not None
    assert 0 <= first.loading_s <= second.loading_s


def test_memory_that_fills_counts_as_movement(tmp_path: Path) -> None:
    with mmap(-1, 8 * MOVED_BYTES) as memory:
        filled = b"x" * len(memory)
        (told_of,) = watched(tmp_path, lambda _: memory.write(filled))
    assert told_of.loading_s is not None


def test_a_load_that_hangs_is_not_told_of_so_that_it_is_ended(tmp_path: Path) -> None:
    assert watched(tmp_path, *[lambda _: None] * 50) == []


def test_a_slow_load_is_told_of_once_it_moved_enough(tmp_path: Path) -> None:
    """Movement adds up over looks: one that is slower than a look's least is no hanging one."""
    assert len(watched(tmp_path, *[lambda _: read(MOVED_BYTES // 4)] * 9)) == 2


def test_tensors_in_place_are_counted_by_the_loaders_own_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loads, "LOOK_S", 0.001)
    hooks: list[Any] = [None]

    def set_tqdm_hook(hook: Any) -> Any:
        hooks.append(hook)
        return hooks[-2]

    logging = SimpleNamespace(set_tqdm_hook=set_tqdm_hook)
    monkeypatch.setitem(sys.modules, "transformers.utils.logging", logging)

    def bar_of(items: Any, **_: Any) -> Iterator[Any]:
        return iter(items)

    with telling("evaluate", Progress(tmp_path)), told("loading base"):
        for name in hooks[-1](bar_of, (["a", "b", "c"],), {"desc": "Loading weights"}):
            if name == "c":
                wait_until(lambda: read(2 * MOVED_BYTES) or steps(tmp_path), "it is told of")
    assert hooks[-1] is None, "the bars are as they were"
    last = steps(tmp_path)[-1]
    assert (last.stage, last.total) == ("evaluate", 3)
    assert last.done >= 2


def test_nobody_hears_of_a_load_outside_a_stage(tmp_path: Path) -> None:
    with told("loading base"):
        read(2 * MOVED_BYTES)
    assert steps(tmp_path) == []
