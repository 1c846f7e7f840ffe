"""What `ratchet versions export` writes goes to a model hub by the hub's own client, whole."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from services.cli import version_compare, version_export
from services.cli.version_export import CARD, export_version
from shared.registry.adapters import checksum
from tests.support.hub import REPOSITORY, Hub, hub, metadata_errors
from tests.unit.cli.test_version_records import record

ROOT = Path(__file__).resolve().parents[2]
UPLOAD = """
import sys
from huggingface_hub import HfApi, ModelCard

folder, repository = sys.argv[1:]
ModelCard.load(folder + "/README.md").validate()
hub = HfApi(token="hf_test")
hub.create_repo(repository, exist_ok=True)
hub.upload_folder(repo_id=repository, folder_path=folder)
"""


def upload(folder: Path, to: Hub) -> subprocess.CompletedProcess[str]:
    """Upload a folder by `huggingface_hub` of the ML environment."""
    return subprocess.run(
        [ROOT / ".venv-ml/bin/python", "-c", UPLOAD, folder, REPOSITORY],
        env={
            **os.environ,
            "HF_ENDPOINT": to.url,
            # Its other way for large files is a protocol of its own; the commit is the same.
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(folder.parent / "home"),
        },
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("base", ["Qwen/Qwen2-1.5B", "/models/starter"])
def test_an_exported_folder_is_taken_by_a_hub_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    adapter, folder = tmp_path / "stored", tmp_path / "out"
    adapter.mkdir()
    for name in ("adapter_config.json", "evaluation.json", "report.html", "chat_template.jinja"):
        (adapter / name).write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"weights" * 1000)
    stored: dict[str, Any] = record(
        base=base, adapter_uri=adapter.as_uri(), adapter_sha256=checksum(adapter)
    )
    monkeypatch.setattr(version_compare, "record_of", lambda _: stored)
    monkeypatch.setattr(version_export, "erased_rows_of", lambda _: 0)
    export_version(stored["version"], folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    with hub() as running:
        done = upload(folder, running)
        assert done.returncode == 0, done.stderr[-2000:]
        assert running.committed == {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }
        assert len(running.committed) == 6
        assert running.validated
    assert metadata_errors((folder / CARD).read_text()) == []


def test_a_card_that_the_hub_refuses_is_not_uploaded(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / CARD).write_text("---\nbase_model: /models/starter\n---\n# a\n")
    with hub() as running:
        done = upload(folder, running)
        assert done.returncode != 0
        assert "is no id of a model" in done.stderr
        assert not running.committed
