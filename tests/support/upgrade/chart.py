"""The chart of the release before, as `tests/fixtures/upgrade` keeps it."""

from __future__ import annotations

import lzma
import subprocess
import tarfile
from pathlib import Path

from deploy.local.processes import ROOT

ARCHIVE = ROOT / "tests/fixtures/upgrade/chart.tar.xz"
CHART = "deploy/k8s/helm/ratchet"


def keep_chart(revision: str) -> None:
    """Write the chart of a revision to the fixture."""
    command = ["git", "archive", "--format=tar", revision, CHART]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    ARCHIVE.write_bytes(lzma.compress(files.stdout))


def previous_chart(folder: Path) -> Path:
    """Unpack the fixture's chart below a folder; where it is."""
    previous = folder / "previous"
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(previous, filter="data")
    return previous / CHART
