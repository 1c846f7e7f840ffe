"""A whole stack that serves: v1.0 trained by the training service and stable, v1.1 registered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from tests.support.command import ratchet
from tests.support.waiting import wait_until

FIRST, SECOND = "assistant-v1.0", "assistant-v1.1"
QUICK_SFT = ("--set", "epochs=1", "--set", "learning_rate=1e-3")
PAIRS = 64


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
    """`serving` with a second version, from a DPO run on imported pairs, registered only."""
    pairs = tmp_path_factory.mktemp("dpo") / "pairs.jsonl"
    rows = (
        {
            "messages": [{"role": "user", "content": f"How do I change order {number}?"}],
            "chosen": f"Happy to help! Open Orders, choose order {number} and press Change.",
            "rejected": "It is usually fine somehow.",
        }
        for number in range(PAIRS)
    )
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = ratchet(
        *("train", "--method", "dpo", "--dataset", pairs.as_uri(), "--version", SECOND),
        *("--wait", "--timeout", "400", "--set", "epochs=2", "--set", "learning_rate=1e-3"),
        *("--override-gate", "--reason", "tests have no judge", "--json"),
        env=serving.environment(),
        timeout_s=420,
    )
    assert made.status == 0, made.out + made.err
    return serving
