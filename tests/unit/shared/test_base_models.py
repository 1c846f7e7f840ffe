"""Base models: the same bytes have the same hash, and are read once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from shared.registry import base_models
from shared.registry.base_models import (
    BaseIdentity,
    base_mismatch,
    base_problem,
    identify_base,
)


def make_base(folder: Path, weights: bytes = b"w") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model-00001-of-00002.safetensors").write_bytes(weights)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"v")
    return folder


def test_copies_are_the_same_and_other_weights_are_another(tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    one, two = make_base(tmp_path / "one"), make_base(tmp_path / "two")
    (two / "README.md").write_text("what a hub says of it does not count")
    other = make_base(tmp_path / "other", b"x")
    found = [identify_base(str(folder), cache).sha256 for folder in (one, two, other)]
    assert found[0] == found[1] != found[2]


def test_files_are_read_once_and_again_when_they_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, cache, read = make_base(tmp_path / "base"), tmp_path / "cache.json", []
    hashed = base_models._sha256
    monkeypatch.setattr(
        base_models, "_sha256", lambda path, moved: read.append(path.name) or hashed(path, moved)
    )
    first = identify_base(str(base), cache)
    assert len(read) == 3
    assert identify_base(str(base), cache) == first
    assert len(read) == 3
    weights = base / "model-00002-of-00002.safetensors"
    weights.write_bytes(b"u")
    os.utime(weights, ns=(1, 1))
    assert identify_base(str(base), cache).sha256 != first.sha256
    assert read[3:] == ["model-00002-of-00002.safetensors"]


def test_a_restart_goes_on_from_the_files_that_were_hashed(tmp_path: Path) -> None:
    base, other = make_base(tmp_path / "base"), make_base(tmp_path / "other")
    cache, chunks = tmp_path / "cache.json", []

    class Killed(Exception):
        pass

    def killed_at_the_third_file() -> None:
        chunks.append(1)
        if len(chunks) == 3:
            raise Killed

    with pytest.raises(Killed):
        identify_base(str(base), cache, moved=killed_at_the_third_file)
    chunks.clear()
    identify_base(str(base), cache, moved=lambda: chunks.append(1))
    assert len(chunks) == 1
    identify_base(str(other), cache)
    identify_base(str(base), cache, moved=lambda: chunks.append(1))
    assert len(chunks) == 1, "another base's hashes took the place of these"


def test_a_hub_s_snapshot_has_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--Qwen--Qwen2"
    snapshot = make_base(repository / "snapshots" / "cafe")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("cafe\n")
    found = identify_base("Qwen/Qwen2", tmp_path / "cache.json")
    assert found.revision == "cafe"
    assert found == identify_base(str(snapshot), tmp_path / "cache.json")
    older = make_base(repository / "snapshots" / "beef", b"older")
    pinned = identify_base("Qwen/Qwen2", tmp_path / "cache.json", "beef")
    assert pinned == identify_base(str(older), tmp_path / "cache.json") != found


def test_a_base_that_is_not_here_is_unknown(tmp_path: Path) -> None:
    assert identify_base("nobody/nothing", tmp_path / "cache.json") == BaseIdentity()
    (tmp_path / "empty").mkdir()
    assert identify_base(str(tmp_path / "empty"), tmp_path / "cache.json") == BaseIdentity()


def test_a_damaged_cache_costs_time_only(tmp_path: Path) -> None:
    base, cache = make_base(tmp_path / "base"), tmp_path / "cache.json"
    expected = identify_base(str(base), tmp_path / "other.json")
    stat = (base / "config.json").stat()
    cut = {str(base / "config.json"): [stat.st_size, stat.st_mtime_ns]}
    for damaged in ('["not", "hashes"]', json.dumps(cut)):
        cache.write_text(damaged)
        assert identify_base(str(base), cache) == expected


def test_only_two_known_hashes_that_differ_are_a_mismatch() -> None:
    assert "trained on aaaaaaaaaaaa" in base_mismatch("a" * 64, "b" * 64)
    for recorded, found in (("a" * 64, "a" * 64), ("", "b" * 64), ("a" * 64, "")):
        assert base_mismatch(recorded, found) == ""


def test_a_folder_that_is_no_base_is_seen_and_a_hub_id_is_not_looked_at(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    for fine in (str(base), "nobody/nothing", "base"):
        assert base_problem(fine) == ""
    (base / "config.json").unlink()
    assert "it has no config.json; give a folder" in base_problem(str(base))
    (tmp_path / "empty").mkdir()
    assert "no config.json and no model*.safetensors" in base_problem(str(tmp_path / "empty"))
    assert f"base: {tmp_path}/nowhere is no folder" in base_problem(f"{tmp_path}/nowhere")
