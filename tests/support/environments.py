"""Python environments of single tests, beside those that `make setup` makes."""

from __future__ import annotations

import subprocess
from pathlib import Path

from deploy.local.processes import ROOT

_UV = ROOT / ".tools" / "uv" / "bin" / "uv"


def locked_environment(lock: str, folder: Path) -> Path:
    """Make an environment of `requirements/<lock>.txt` in a folder; its interpreter."""
    made = folder / "bin" / "python"
    pinned = ROOT / "requirements" / f"{lock}.txt"
    subprocess.run([_UV, "venv", "-q", "--python", ROOT / ".venv/bin/python", folder], check=True)
    subprocess.run(
        [_UV, "pip", "sync", "-q", "--require-hashes", "--python", made, pinned], check=True
    )
    return made
