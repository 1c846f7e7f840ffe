"""Trainers read a dataset from disk: the same rows, in memory that does not grow with them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MORE_ROWS = 6_000
"""Rows of the larger dataset beyond those of the smaller one."""

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `training_memory.py` prints; the caches of all users are its own here."""
    home = tmp_path_factory.mktemp("home")
    script = Path(__file__).with_name("training_memory.py")
    done = subprocess.run(
        [ROOT / ".venv-ml/bin/python", script, tmp_path_factory.mktemp("memory")],
        check=True,
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        timeout=540,
    )
    return json.loads(done.stdout) | {"cached": [path.name for path in home.rglob("*.arrow")]}


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto", "proxy"])
def test_memory_does_not_grow_with_the_rows_of_a_training(
    memory: dict[str, Any], stage: str
) -> None:
    assert memory[stage]["growth_kib"] / MORE_ROWS < 5, "held rows are 20 KiB each"


def test_mapped_rows_are_those_of_the_file_in_its_order(memory: dict[str, Any]) -> None:
    assert memory["same"]


def test_a_stage_leaves_none_of_its_rows_behind(memory: dict[str, Any]) -> None:
    assert [memory[stage]["left"] for stage in ("sft", "dpo", "kto", "proxy")] == [[]] * 4
    assert memory["cached"] == []
