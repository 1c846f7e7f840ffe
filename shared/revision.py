"""Version and revision of this code."""

from __future__ import annotations

import subprocess
from pathlib import Path

VERSION = "0.1.0"
"""As in pyproject.toml and the chart; images have no package metadata to read it from."""
TIMEOUT_S = 10


def code_revision(baked: str, root: Path) -> str:
    """The revision an image was built from, else the work tree's commit, else `unknown`.

    A work tree with changes is marked `-changed`, as its commit alone would not rebuild anything.
    """
    if baked:
        return baked
    commit = _git(root, "rev-parse", "HEAD")
    if not commit:
        return "unknown"
    return f"{commit}-changed" if _git(root, "status", "--porcelain", "-uno") else commit


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
