"""From a candidate to a version: the adapter's files to storage, then the record to the log.

The record is the commit: before it nothing serves the files, and a name with a record is never
written again.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from services.training.candidate import Candidate
from services.training.errors import StoreUnavailable
from shared.registry.adapters import publish

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Published:
    """Where an adapter's files are, and their checksum."""

    uri: str
    sha256: str


def gather(candidate: Candidate, report: str, folder: Path) -> None:
    """Put together what is published: the adapter, the report, the figures. Nothing else goes.

    Trainers also leave a copy of the reference adapter and pickled settings, which have no place
    in an adapter folder.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ADAPTER_FILES:
        shutil.copyfile(candidate.adapter / name, folder / name)
    (folder / "report.md").write_text(report, encoding="utf-8")
    summary: dict[str, Any] = {
        "figures": candidate.figures,
        "gate": candidate.gate.model_dump(mode="json"),
    }
    (folder / "evaluation.json").write_text(
        json.dumps(summary, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )


def upload(folder: Path, root: str, version: str) -> Published:
    """Store an adapter folder under the version's name.

    Files of an earlier try that never got a record are replaced.

    Raises:
        StoreUnavailable: the storage refused it.

    """
    uri = f"{root.rstrip('/')}/{version}"
    try:
        filesystem, path = fsspec.url_to_fs(uri)
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)
        digest = publish(folder, uri)
    except Exception as error:
        raise StoreUnavailable(f"{uri}: cannot be written: {error}") from error
    return Published(uri, digest)
