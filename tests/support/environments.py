"""Python environments of single tests, beside those that `make setup` makes."""

from __future__ import annotations

import subprocess
from pathlib import Path

from deploy.local.processes import ROOT

_UV = ROOT / ".tools" / "uv" / "bin" / "uv"
_PYTHON = ROOT / ".venv" / "bin" / "python"


def locked_environment(lock: str, folder: Path) -> Path:
    """Make an environment of `requirements/<lock>.txt` in a folder; its interpreter."""
    made = folder / "bin" / "python"
    subprocess.run([_UV, "venv", "-q", "--python", _PYTHON, folder], check=True)
    _install(lock, "--python", made)
    return made


def locked_beside(lock: str, folder: Path) -> dict[str, str]:
    """Install `requirements/<lock>.txt` into a folder; what makes `.venv` find it there."""
    _install(lock, "--python", _PYTHON, "--target", folder)
    return {"PYTHONPATH": str(folder)}


def _install(lock: str, *where: str | Path) -> None:
    pinned = ROOT / "requirements" / f"{lock}.txt"
    subprocess.run([_UV, "pip", "sync", "-q", "--require-hashes", *where, pinned], check=True)
