"""Versions compared and exported: records side by side, a folder for model hubs, its card."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from services.cli import version_compare, version_export
from services.cli.errors import CliError, Exit
from services.cli.identity import principal
from services.cli.settings import load_settings
from services.cli.version_compare import rebuild_version
from services.cli.version_export import export_version, model_card
from shared.contracts.recipes import read_recipe
from shared.registry.adapters import checksum
from shared.registry.base_models import identify_base
from shared.registry.record_differences import differences
from shared.testing.log import MemoryLog


def record(**changes: Any) -> dict[str, Any]:
    return {
        "version": "assistant-v1.1",
        "model": "assistant",
        "method": "dpo",
        "algorithm": "kto",
        "base": "Qwen/Qwen2-1.5B",
        "parent": "assistant-v1.0",
        "adapter_uri": "file:///a",
        "adapter_sha256": "0" * 64,
        "dataset": {"dataset_id": "d-1", "rows": 7, "sha256": "ab"},
        "hyperparameters": {"beta": 0.1, "reward": {"epochs": 2.0}},
        "seed": 3,
        "code_revision": "cafe",
        "packages": {"trl": "1.16.0"},
        "metrics": {"win_rate": 0.64},
        "gate": {"passed": True, "checks": [{"name": "win_rate", "value": 0.64}]},
        "job_id": "j",
        "created_at": "2026-11-01T12:00:00Z",
        **changes,
    }


def test_a_datasets_card_is_no_difference_and_its_rules_are() -> None:
    old = {"dataset": {"card": {"source": {"vote": 1}}, "rules": {"min_chars": 10}}}
    new = {"dataset": {"card": {"source": {"vote": 2}}, "rules": {"min_chars": 20}}}
    found = [one["field"] for one in differences(old, new)]
    assert found == ["dataset.rules.min_chars"]


def test_only_what_differs_is_shown_by_its_path() -> None:
    other = record(
        version="assistant-v1.2",
        hyperparameters={"beta": 0.2, "reward": {"epochs": 2.0}, "seed": 1},
        gate={"passed": True, "checks": [{"name": "win_rate", "value": 0.7}]},
        adapter_sha256="1" * 64,
    )
    assert differences(record(), other) == [
        {"field": "gate.checks.win_rate", "first": 0.64, "second": 0.7},
        {"field": "hyperparameters.beta", "first": 0.1, "second": 0.2},
        {"field": "hyperparameters.seed", "first": None, "second": 1},
    ]
    assert differences(record(), record()) == []


def parts(card: str) -> tuple[dict[str, Any], str]:
    """A card's metadata, and its recipe."""
    _, metadata, text = card.split("---\n", 2)
    return yaml.safe_load(metadata), text.partition("```yaml\n")[2].partition("```")[0]


def test_the_card_has_what_hubs_read_and_a_recipe_that_can_be_handed_back() -> None:
    metadata, recipe = parts(model_card(record()))
    assert metadata == {
        "base_model": "Qwen/Qwen2-1.5B",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "kto", "ratchet"],
    }
    read = read_recipe(recipe)
    assert (read.method, read.seed, read.hyperparameters["beta"]) == ("kto", 3, 0.1)


def test_the_card_says_that_rows_were_erased_since() -> None:
    assert "| erased since | 2 rows of its data |" in model_card(record(), erased_rows=2)
    assert "erased" not in model_card(record())


def test_the_card_says_how_far_the_data_are_from_the_policy() -> None:
    figures = {"data_on_policy_share": 0.25, "data_policy_lag": 1.5, "data_age_days": 3.0}
    card = model_card(record(metrics=figures))
    assert all(f"| {name} | {value:.4g} |" in card for name, value in figures.items())


def test_a_base_on_this_machine_is_no_base_model_of_a_hub() -> None:
    metadata, _ = parts(model_card(record(base="/models/starter")))
    assert "base_model" not in metadata


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The record of an adapter that lies in storage."""
    adapter = tmp_path / "stored"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    found = record(adapter_uri=f"file://{adapter}", adapter_sha256=checksum(adapter))
    monkeypatch.setattr(version_compare, "record_of", lambda _: found)
    return found


def test_an_export_has_the_adapters_files_and_the_card(
    stored: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version_export, "erased_rows_of", lambda _: 2)
    folder = tmp_path / "out"
    export_version(stored["version"], folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert "2 rows of its data" in (folder / "README.md").read_text()
    with pytest.raises(CliError, match="not empty"):
        export_version(stored["version"], folder)


MERGES = """
import json, pathlib, sys
asked = json.load(sys.stdin)
if asked["dtype"] == "float16":
    (pathlib.Path(asked["to"]) / "half").write_text("")
    print(json.dumps({"error": "dtype: rounded"}))
    sys.exit(1)
(pathlib.Path(asked["to"]) / "model.safetensors").write_text(json.dumps(asked))
found = {"base": 0.3, "adapter": 0.0, "merged": 1e-7, "written": 2e-7}
print(json.dumps({"dtype": "float32", "parameters": 10, "difference": found}))
"""


@pytest.fixture
def merging(
    stored: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The stored record with a fingerprint and a base here, and a Python that plays the merging."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"base")
    script, python = tmp_path / "merges.py", tmp_path / "python"
    script.write_text(MERGES)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}"\n')
    python.chmod(0o755)
    monkeypatch.setenv("RATCHET_TRAINING_PYTHON", str(python))
    monkeypatch.setattr(version_export, "erased_rows_of", lambda _: 0)
    text = {"tokens": [1, 2], "logprobs": [-0.5]}
    here = identify_base(str(base), tmp_path / "hashes.json").sha256
    stored |= {"base": str(base), "base_sha256": here, "fingerprint": {"texts": [text]}}
    return stored


def test_a_merged_export_is_a_whole_model_with_its_lineage(
    merging: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "merged"
    folder.mkdir()
    export_version(merging["version"], folder, merged=True)
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["README.md", "merge.json", "model.safetensors"]
    asked = json.loads((folder / "model.safetensors").read_text())
    assert asked["texts"] == merging["fingerprint"]["texts"]
    assert (asked["revision"], asked["dtype"]) == ("main", "")
    report = json.loads((folder / "merge.json").read_text())
    for name in ("version", "base", "base_sha256", "adapter_sha256"):
        assert report[name] == merging[name]
    assert report["difference"]["written"] == 2e-7
    text = (folder / "README.md").read_text()
    metadata, _ = parts(text)
    assert metadata["library_name"] == "transformers"
    assert merging["base_sha256"] in text
    assert merging["adapter_sha256"] in text
    assert "PeftModel" not in text
    with pytest.raises(CliError, match="not empty"):
        export_version(merging["version"], folder, merged=True)


@pytest.mark.parametrize(
    ("changed", "python", "options", "why"),
    [
        ({}, "", {"dtype": "float16"}, "dtype: rounded"),
        ({"base_sha256": "f" * 64}, "", {}, "its files have the SHA-256"),
        ({}, "/nowhere/python", {}, "merge where the training service runs"),
        ({}, "/bin/false", {}, "the merging process ended with 1"),
    ],
)
def test_a_merging_that_fails_leaves_nothing_behind(
    merging: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    python: str,
    options: dict[str, Any],
    why: str,
) -> None:
    merging |= changed
    if python:
        monkeypatch.setenv("RATCHET_TRAINING_PYTHON", python)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CliError, match=why):
        export_version(merging["version"], tmp_path / "merged", merged=True, **options)
    assert sorted(tmp_path.iterdir()) == before


def test_options_of_a_merged_export_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    for options in ({"chain": True, "merged": True}, {"dtype": "float32"}):
        with pytest.raises(CliError) as refused:
            export_version("assistant-v1.1", tmp_path / "out", **options)
        assert refused.value.status is Exit.usage


def test_a_chain_is_exported_as_checkpoints_from_sft_on(
    stored: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = {
        "m-v1.0": {"method": "sft", "algorithm": "", "parent": ""},
        "m-v1.1": {"method": "dpo", "algorithm": "", "parent": "m-v1.0"},
        "m-v1.2": {"method": "dpo", "algorithm": "kto", "parent": "m-v1.1"},
        "m-v1.3": {"method": "dpo", "algorithm": "", "parent": "m-v1.2"},
    }
    monkeypatch.setattr(version_export, "erased_rows_of", lambda _: 0)
    monkeypatch.setattr(
        version_compare, "record_of", lambda name: stored | {"version": name} | chain[name]
    )
    export_version("m-v1.3", tmp_path / "checkpoints", chain=True)
    written = {
        str(card.parent.relative_to(tmp_path / "checkpoints")): card.read_text().split("# m-")[1][
            :4
        ]
        for card in (tmp_path / "checkpoints").glob("*/*/README.md")
    }
    assert written == {
        "sft/sft-lora": "v1.0",
        "dpo/dpo-iter1-lora": "v1.1",
        "kto/kto-iter2-lora": "v1.2",
        "dpo/dpo-iter3-lora": "v1.3",
    }


def test_other_bytes_than_the_registered_ones_are_not_exported(
    stored: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "stored" / "adapter_model.safetensors").write_bytes(b"others")
    with pytest.raises(CliError, match="SHA-256"):
        export_version(stored["version"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_version_of_settings_is_neither_exported_nor_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"version": "polite", "model": "assistant", "adapter_of": "", "settings": {}}
    monkeypatch.setattr(version_compare, "record_of", lambda _: found)
    for ask in (
        lambda: export_version("polite", tmp_path / "out"),
        lambda: rebuild_version("polite"),
    ):
        with pytest.raises(CliError, match="prompts and settings") as refused:
            ask()
        assert refused.value.status is Exit.usage


def test_a_rebuild_is_asked_for_by_the_principal_whoever_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    async def run_job(_: Any, request: Any, *__: Any) -> Any:
        asked.append(request)
        return SimpleNamespace(phase=SimpleNamespace(value="succeeded"), message="equal")

    monkeypatch.setattr(version_compare, "record_of", lambda _: record())
    monkeypatch.setattr(version_compare, "run_job", run_job)
    monkeypatch.setattr(version_compare, "with_log", lambda _, work: asyncio.run(work(MemoryLog())))
    rebuild_version("assistant-v1.1", reason="an audit", on_behalf_of="ana")
    (request,) = asked
    assert (request.rebuilds, request.reason) == ("assistant-v1.1", "an audit")
    assert (request.actor, request.on_behalf_of) == (principal(load_settings()), "ana")
