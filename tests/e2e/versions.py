"""More versions beside v1.0, made in half a minute."""

from __future__ import annotations

import json
from pathlib import Path

from deploy.local.stack import Stack
from tests.support.command import ratchet

PAIRS = 64


def register_version(stack: Stack, version: str, folder: Path) -> None:
    """Trains a version by DPO on imported pairs, past the gate, without a rollout of its own."""
    pairs = folder / "pairs.jsonl"
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
        *("train", "--method", "dpo", "--dataset", pairs.as_uri(), "--version", version),
        *("--wait", "--timeout", "400", "--set", "epochs=2", "--set", "learning_rate=1e-3"),
        *("--override-gate", "--reason", "tests have no judge", "--json"),
        env=stack.environment(),
        timeout_s=420,
    )
    assert made.status == 0, made.out + made.err
