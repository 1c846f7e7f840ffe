"""A little traffic with feedback, through the public doors."""

from __future__ import annotations

import random
import time

import httpx

from deploy.local.stack import Stack

SUBJECTS = ("order", "invoice", "parcel", "password", "refund")


def send_traffic(stack: Stack, *, seconds: float, seed: int = 1) -> None:
    """Chats for a while as forty users, half of whom say what they think."""
    rng = random.Random(seed)
    until = time.monotonic() + seconds
    with httpx.Client(timeout=30) as client:
        while time.monotonic() < until:
            user = f"user-{rng.randrange(40)}"
            answer = client.post(
                f"{stack.url('router')}/v1/chat/completions",
                json={
                    "model": "assistant",
                    "messages": [
                        {"role": "user", "content": f"Where is my {rng.choice(SUBJECTS)}?"}
                    ],
                    "max_tokens": 16,
                    "user": user,
                },
            )
            answer.raise_for_status()
            if rng.random() < 0.5:
                client.post(
                    f"{stack.url('feedback')}/v1/feedback",
                    json={
                        "trace_id": answer.headers["x-ratchet-trace-id"],
                        "type": rng.choice(("thumbs_up", "thumbs_down")),
                        "user_id": user,
                    },
                ).raise_for_status()
