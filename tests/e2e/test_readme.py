"""Every command of the README works as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(
    r"(?:<!-- test: (?P<name>\w+) -->\n)?```(?P<language>bash|python)\n(?P<text>.*?)```", re.DOTALL
)
BLOCKS = {found["name"]: found["text"] for found in BLOCK.finditer(README) if found["name"]}
MAKE = {found["text"] for found in BLOCK.finditer(README) if not found["name"]}
DEFAULTS = {"router": "8080", "feedback": "8081", "kafka": "9092"}


def at_home(text: str, stack: Stack) -> str:
    """The block with this stack's ports in place of the default ones."""
    for name, port in DEFAULTS.items():
        text = text.replace(f"127.0.0.1:{port}", stack.address(name))
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


def run_bash(text: str, stack: Stack, timeout_s: float = 60) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": os.environ.get("HOME", "/"), **stack.environment()}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_block_has_a_test() -> None:
    assert set(BLOCKS) == {"connect", "kafka", "look", "rollout", "train"}
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for text in MAKE for word in re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)}
    assert named
    assert named <= targets


def test_relative_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(((?!http)[^)#]+)", README):
        assert (ROOT / link).exists(), link


def test_a_product_connects_by_http_and_kafka(serving: Stack) -> None:
    printed = run_python(BLOCKS["connect"], serving)
    assert printed.strip(), "the model said nothing"
    run_python(BLOCKS["connect"] + BLOCKS["kafka"], serving)

    def counted() -> bool:
        done = subprocess.run(
            ["curl", "-fsS", f"{serving.url('aggregator')}/metrics"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        found = re.findall(
            r'^ratchet_feedback_total\{[^}]*type="(thumbs_up|rating)"[^}]*\} ([0-9.]+)',
            done.stdout,
            re.MULTILINE,
        )
        totals = {kind: sum(float(n) for k, n in found if k == kind) for kind, _ in found}
        return totals.get("thumbs_up", 0) >= 2 and totals.get("rating", 0) >= 1

    wait_until(counted, "feedback by both ways is counted", timeout_s=60)


def test_an_operator_looks(serving: Stack) -> None:
    printed = run_bash(BLOCKS["look"], serving)
    assert "assistant-v1.0" in printed
    assert "stable" in printed


@pytest.mark.timeout(900)
def test_an_operator_rolls_out_and_back(two_versions: Stack) -> None:
    run_bash(BLOCKS["rollout"], two_versions, timeout_s=120)
    states = run_bash("ratchet versions list", two_versions)
    assert re.search(r"assistant-v1\.1\b.*rejected", states)
    assert re.search(r"assistant-v1\.0\b.*stable", states)


def test_training_by_command_says_why_it_cannot(serving: Stack) -> None:
    """Nobody has voted on this stack, and the command says what is missing."""
    with pytest.raises(AssertionError, match=r"no rows to train assistant|judge"):
        run_bash(BLOCKS["train"], serving, timeout_s=120)
