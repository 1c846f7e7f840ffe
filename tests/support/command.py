"""Running `ratchet` as a shell would, within this process or as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services.cli.__main__ import main

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its standard output as JSON."""
        return json.loads(self.out)


def ratchet(*arguments: str, env: Mapping[str, str], timeout_s: float = 180) -> Ran:
    """`ratchet …` as a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-m", "services.cli", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **env},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def ratchet_here(
    *arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Ran:
    """`ratchet …` in this process; the environment is as `monkeypatch` made it."""
    monkeypatch.setattr(sys, "argv", ["ratchet", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    code = ended.value.code
    return Ran(int(code) if code is not None else 0, captured.out, captured.err)
