"""vLLM writes a training's answers: those of transformers, of the adapter that is trained."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shared.contracts.recipes import ONLINE

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(900)


def printed(part: str, folder: Path) -> dict[str, Any]:
    """What `training_generation.py` prints of a part."""
    script = Path(__file__).with_name("training_generation.py")
    done = subprocess.run(
        [ROOT / ".venv-ml/bin/python", script, folder, part],
        check=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        timeout=840,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return printed("written", tmp_path_factory.mktemp("written"))


@pytest.mark.parametrize("arm", ["base", "one", "two"])
def test_the_likeliest_answers_are_those_of_transformers(written: dict[str, Any], arm: str) -> None:
    theirs, ours = written["theirs"][arm], written["ours"][arm]
    assert len(theirs) == 24, "an answer to each prompt"
    assert all(theirs)
    assert theirs == ours


def test_each_adapter_answers_differently_from_the_base_and_the_other(
    written: dict[str, Any],
) -> None:
    base, one, two = (written["theirs"][arm] for arm in ("base", "one", "two"))
    assert all(a != b and b != c and a != c for a, b, c in zip(base, one, two, strict=True))


def test_chance_follows_the_seed_and_probabilities_are_those_of_the_policy(
    written: dict[str, Any],
) -> None:
    first, again, other = written["drawn"]
    assert first == again
    assert sum(a != b for a, b in zip(first, other, strict=True)) > 20
    assert written["apart"] < 1e-3, "nats of a token"


def test_an_adapter_that_vllm_refuses_is_told_with_the_remedy(written: dict[str, Any]) -> None:
    assert "LoRA rank 16 is greater than max_lora_rank 8" in written["refused"]
    assert "set generation to transformers" in written["refused"]
    assert written["packages"] == {"vllm": written["packages"]["vllm"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return printed("trained", tmp_path_factory.mktemp("trained"))


@pytest.mark.verify
@pytest.mark.parametrize("method", ONLINE)
def test_a_method_trains_on_answers_that_vllm_wrote(trained: dict[str, Any], method: str) -> None:
    found = trained[method]
    assert found["moved"] > 0
    assert found["figures"]["loss"] == found["figures"]["loss"]
    assert found["figures"]["kl"] >= 0
    assert "engine.json" in found["files"]
    if method == "grpo":
        assert len(found["apart"]) >= 10, "the engine had the adapter of each step"
        assert max(found["apart"]) < 1e-3


@pytest.mark.verify
def test_an_evaluation_asks_both_arms_and_measures_the_same(tmp_path: Path) -> None:
    found = printed("evaluated", tmp_path)
    theirs, ours = found["vllm"], found["transformers"]
    assert theirs == ours, "the same answers at temperature 0, so the same figures"
    assert len(theirs["answers"]) == 8
    assert all(row["candidate"] != row["parent"] for row in theirs["answers"])
    assert len(theirs["questions"]) > 50
