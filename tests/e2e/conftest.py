"""A whole stack that serves: v1.0 trained by the training service and stable, more by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.stack import Stack
from tests.e2e.versions import register_version
from tests.support.command import ratchet
from tests.support.waiting import wait_until

FIRST, SECOND = "assistant-v1.0", "assistant-v1.1"
QUICK_SFT = ("--set", "epochs=1", "--set", "learning_rate=1e-3")


@pytest.fixture(scope="session")
def serving(full_stack: Stack, starter: str, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """The shared stack after `ratchet train` made the first version, which is stable and loaded."""
    env = full_stack.environment()
    demonstrations = Path(starter).parent / "sft.jsonl"
    rows = demonstrations.read_text().splitlines()[:400]
    dataset = tmp_path_factory.mktemp("sft") / "sft.jsonl"
    dataset.write_text("\n".join(rows) + "\n")
    made = ratchet(
        *("train", "--method", "sft", "--base", starter, "--dataset", dataset.as_uri()),
        *("--version", FIRST, "--wait", "--timeout", "400", "--json", *QUICK_SFT),
        *("--override-gate", "--reason", "tests serve a version trained in a hurry"),
        env=env,
        timeout_s=420,
    )
    assert made.status == 0, made.out + made.err

    def stable_and_ready() -> bool:
        seen = ratchet("versions", "list", "--json", env=env)
        states = {row["version"]: row["state"] for row in seen.json["versions"]}
        return states.get(FIRST) == "stable" and full_stack.is_ready("inference")

    wait_until(stable_and_ready, f"{FIRST} is stable and loaded", timeout_s=60)
    return full_stack


@pytest.fixture(scope="session")
def two_versions(serving: Stack, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """`serving` with the README's second version, registered only."""
    register_version(serving, SECOND, tmp_path_factory.mktemp("dpo"))
    return serving
