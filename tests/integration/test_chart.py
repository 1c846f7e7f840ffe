"""The chart by helm itself: no warning, and the manifests in the repository are its output."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "k8s" / "helm" / "ratchet"
MANIFESTS = ROOT / "deploy" / "k8s" / "manifests" / "ratchet.yaml"
KUBERNETES = "1.32"
BUILD_S = 900


@pytest.fixture(scope="module")
def helm() -> str:
    """Helm, built with Go where it is missing."""
    found = subprocess.run(
        [ROOT / "deploy" / "k8s" / "helm.sh"],
        capture_output=True,
        text=True,
        timeout=BUILD_S,
        check=False,
    )
    if found.returncode != 0:
        pytest.skip(f"no helm: {found.stderr.strip()[-300:]}")
    return found.stdout.strip()


def run(*arguments: str) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(BUILD_S + 150)
def test_the_chart_lints_without_a_warning_and_the_manifests_are_fresh(helm: str) -> None:
    linted = run(helm, "lint", "--strict", str(CHART), "--kube-version", KUBERNETES)
    assert "WARNING" not in linted
    rendered = run(helm, "template", "ratchet", str(CHART), "--kube-version", KUBERNETES)
    assert rendered == MANIFESTS.read_text(), "run: make manifests"
