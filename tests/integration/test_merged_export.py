"""`ratchet versions export --merged`: transformers and vLLM load the folder, and it is the version."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from services.cli import version_compare, version_export
from services.cli.errors import CliError
from services.cli.version_export import export_version
from shared.registry.adapters import publish
from shared.registry.base_models import identify_base
from tests.unit.cli.test_version_records import record

ROOT = Path(__file__).resolve().parents[2]
ML_PYTHON = ROOT / ".venv-ml/bin/python"
pytestmark = pytest.mark.timeout(600)
BY_TRANSFORMERS = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, texts = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
found = []
for tokens in texts:
    ids = torch.tensor([tokens])
    with torch.no_grad(): logits = model(input_ids=ids).logits[0, :-1]
    found.append(logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].tolist())
chat = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
print(json.dumps({"logprobs": found, "chat": chat}))
"""
BY_VLLM = """
import json, sys
from vllm import LLM, SamplingParams
folder, texts = sys.argv[1], json.loads(sys.argv[2])
engine = LLM(folder, dtype="float32", max_model_len=512, distributed_executor_backend="uni")
asked = SamplingParams(max_tokens=1, prompt_logprobs=0)
answers = engine.generate([{"prompt_token_ids": tokens} for tokens in texts], asked, use_tqdm=False)
found = [
    [of[token].logprob for token, of in zip(one.prompt_token_ids[1:], one.prompt_logprobs[1:])]
    for one in answers
]
print(json.dumps({"logprobs": found}))
"""


def loaded(script: str, folder: Path, texts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a script of the ML environment prints of a folder and the tokens of some texts."""
    done = subprocess.run(
        [ML_PYTHON, "-c", script, folder, json.dumps([text["tokens"] for text in texts])],
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "TORCH_COMPILE_DISABLE": "1",
        },
        check=False,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, adapters and `fingerprints.json`."""
    folder = tmp_path_factory.mktemp("tiny")
    subprocess.run(
        [ML_PYTHON, ROOT / "tests/integration/tiny_models.py", folder],
        check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        timeout=300,
        capture_output=True,
    )
    return folder


@pytest.fixture
def stored(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The record of the first tiny adapter; its base is identified by its files."""
    place = (tmp_path / "store/tiny").as_uri()
    prints = json.loads((tiny / "fingerprints.json").read_text())
    found = record(
        base=str(tiny / "base"),
        base_sha256=identify_base(str(tiny / "base"), tmp_path / "hashes.json").sha256,
        adapter_uri=place,
        adapter_sha256=publish(tiny / "tiny-v1.0", place),
        fingerprint={"dtype": "float32", "texts": prints["tiny-v1.0"]},
    )
    monkeypatch.setattr(version_compare, "record_of", lambda _: found)
    monkeypatch.setattr(version_export, "erased_rows_of", lambda _: 0)
    return found


def apart(one: Sequence[Sequence[float]], texts: Sequence[dict[str, Any]]) -> float:
    """The largest difference of a log-probability from the one on record."""
    pairs = zip(one, texts, strict=True)
    return max(
        abs(left - right)
        for ours, text in pairs
        for left, right in zip(ours, text["logprobs"], strict=True)
    )


def test_the_folder_is_the_version_to_transformers_and_vllm(
    stored: dict[str, Any], tmp_path: Path
) -> None:
    folder, texts = tmp_path / "merged", stored["fingerprint"]["texts"]
    export_version(stored["version"], folder, merged=True)
    names = {path.name for path in folder.iterdir()}
    assert {"README.md", "config.json", "merge.json", "model.safetensors"} <= names
    assert not [name for name in names if name.startswith("adapter")]
    difference = json.loads((folder / "merge.json").read_text())["difference"]
    assert difference["adapter"] < 1e-3
    assert difference["merged"] < 1e-3
    assert difference["written"] < 1e-3 < difference["base"]
    read = loaded(BY_TRANSFORMERS, folder, texts)
    assert apart(read["logprobs"], texts) < 1e-3
    assert "hello" in read["chat"]
    assert apart(loaded(BY_VLLM, folder, texts)["logprobs"], texts) < 1e-3


def test_weights_in_another_type_are_read_back_before_they_count(
    stored: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "merged"
    export_version(stored["version"], folder, merged=True, dtype="bfloat16")
    report = json.loads((folder / "merge.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    assert (report["dtype"], config["dtype"]) == ("bfloat16", "bfloat16")
    assert report["difference"]["merged"] < report["difference"]["written"] < 0.1


def test_a_version_that_answers_otherwise_than_on_record_is_not_merged(
    stored: dict[str, Any], tmp_path: Path, tiny: Path
) -> None:
    prints = json.loads((tiny / "fingerprints.json").read_text())
    stored["fingerprint"]["texts"] = prints["tiny-v1.1"]
    with pytest.raises(CliError, match="answers otherwise than is on record"):
        export_version(stored["version"], tmp_path / "merged", merged=True)
    assert not (tmp_path / "merged").exists()
