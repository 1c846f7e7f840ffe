"""The README's blocks, and running them on a stack."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from deploy.local.stack import Stack

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(
    r"(?:<!-- test: (?P<name>\w+) -->\n)?```(?P<language>bash|python)\n(?P<text>.*?)```", re.DOTALL
)
BLOCKS = {found["name"]: found["text"] for found in BLOCK.finditer(README) if found["name"]}
MAKE = {found["text"] for found in BLOCK.finditer(README) if not found["name"]}
STARTED = 'ratchet rollout start assistant-calm --reason "registered"\n'
ROLLOUT = BLOCKS["rollout"].replace("ratchet rollout status", f"{STARTED}ratchet rollout status", 1)
"""The block on the tests' stack, where no rollout begins by itself."""
DEFAULTS = {"router": "8080", "feedback": "8081", "kafka": "9092"}


def at_home(text: str, stack: Stack) -> str:
    """The block with this stack's ports in place of the default ones."""
    for name, port in DEFAULTS.items():
        text = re.sub(rf"(127\.0\.0\.1|localhost):{port}", stack.address(name), text)
    return text


def run_python(text: str, stack: Stack) -> str:
    done = subprocess.run(
        [sys.executable, "-c", at_home(text, stack)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_bash(
    text: str, stack: Stack, timeout_s: float = 60, *, cwd: Path = ROOT, **variables: str
) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {
        "PATH": path,
        "HOME": os.environ.get("HOME", "/"),
        **stack.environment(),
        **variables,
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        cwd=cwd,
        env=environment,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout
