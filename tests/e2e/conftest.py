"""A whole stack that serves: v1.0 trained by the training service and stable, more by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.stack import Stack
from tests.e2e.readme import BLOCKS, run_bash
from tests.e2e.versions import HURRIED, register_version
from tests.support.command import ratchet
from tests.support.waiting import wait_until

FIRST, SECOND = "assistant-v1.0", "assistant-v1.1"


@pytest.fixture(scope="session")
def serving(full_stack: Stack, starter: str, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """The shared stack after the README's command made the first version: stable and loaded."""
    env = full_stack.environment()
    rows = (Path(starter).parent / "sft.jsonl").read_text().splitlines()[:400]
    folder = tmp_path_factory.mktemp("sft")
    (folder / "demonstrations.jsonl").write_text("\n".join(rows) + "\n")
    run_bash(f"{BLOCKS['first'].strip()} {HURRIED}", full_stack, 420, cwd=folder, BASE=starter)

    def stable_and_ready() -> bool:
        seen = ratchet("versions", "list", "--json", env=env)
        states = {row["version"]: row["state"] for row in seen.json["versions"]}
        return states.get(FIRST) == "stable" and full_stack.is_ready("inference")

    wait_until(stable_and_ready, f"{FIRST} is stable and loaded")
    return full_stack


@pytest.fixture(scope="session")
def two_versions(serving: Stack, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """`serving` with the README's second version, registered only."""
    register_version(serving, SECOND, tmp_path_factory.mktemp("dpo"))
    return serving
