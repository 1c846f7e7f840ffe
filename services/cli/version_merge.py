"""Merging of a version's adapter into its base, by a process of the ML environment."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from services.cli.errors import CliError, Exit
from shared.registry.base_models import base_mismatch, identify_base

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "RATCHET_TRAINING_PYTHON"
"""Variable with the Python of the ML environment, which the training service's trainers run in, too."""
MERGE_S = 3600.0
LINEAGE = ("version", "base", "base_revision", "base_sha256", "adapter_sha256")
"""Fields of the record that the report of a merging has."""


def merge_adapter(record: Mapping[str, Any], adapter: Path, to: Path, dtype: str) -> dict[str, Any]:
    """Write base and adapter to an empty folder as one model, and return what was measured.

    Raises:
        CliError: the ML environment is not here, or the merged model would not be the version.

    """
    base, revision = record["base"], record.get("base_revision") or "main"
    with TemporaryDirectory() as cache:
        here = identify_base(base, Path(cache) / "hashes.json", revision).sha256
    if wrong := base_mismatch(record.get("base_sha256", ""), here):
        raise CliError(f"{record['version']}: {wrong}", Exit.failed)
    asked = {
        "base": str(Path(base).resolve()) if Path(base).is_dir() else base,
        "revision": revision,
        "adapter": str(adapter.resolve()),
        "to": str(to.resolve()),
        "texts": record["fingerprint"]["texts"],
        "dtype": dtype,
    }
    python = os.environ.get(PYTHON) or ".venv-ml/bin/python"
    try:
        done = subprocess.run(
            [python, "-m", "services.training.trainers.merge"],
            input=json.dumps(asked),
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
            timeout=MERGE_S,
            check=False,
        )
    except OSError as error:
        raise CliError(
            f"{python}: {error.strerror}; merge where the training service runs, or name the ML "
            f"environment's Python by {PYTHON}",
            Exit.failed,
        ) from None
    except subprocess.TimeoutExpired:
        raise CliError(f"{base}: not merged within {MERGE_S:g} s", Exit.failed) from None
    try:
        found = json.loads(done.stdout)
    except ValueError:
        found = {"error": f"the merging process ended with {done.returncode}; see above"}
    if "error" in found:
        raise CliError(f"{record['version']}: {found['error']}", Exit.failed)
    return {**{name: record.get(name, "") for name in LINEAGE}, **found}
