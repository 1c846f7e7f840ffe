"""Go programs of the tests, built from their modules."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

BUILD_TIMEOUT_S = 900.0
needs_go = pytest.mark.skipif(shutil.which("go") is None, reason="it is built with Go")


def build(module: Path, binary: Path, *, variables: str = "") -> None:
    """The module's program as `binary`; `variables` are linker flags that set some."""
    command = ("go", "build", "-trimpath", "-ldflags", f"-s -w {variables}", "-o", str(binary), ".")
    env = {**os.environ, "CGO_ENABLED": "0"}
    subprocess.run(command, cwd=module, env=env, check=True, timeout=BUILD_TIMEOUT_S)
