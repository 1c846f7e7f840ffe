"""More versions beside v1.0, made in half a minute, and pairs to train them on."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy.local.stack import Stack
from shared.contracts.events.base import Message
from shared.contracts.events.preferences import PairSource, PreferencePair
from shared.contracts.topics import PREFERENCES
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from tests.support.command import ratchet

PAIRS = 64
HURRIED = (
    "--timeout 400 --set epochs=1 --set learning_rate=1e-3 "
    "--override-gate --reason 'tests serve a version trained in a hurry'"
)
"""What the README's commands are given besides: seconds of training, which no gate would pass."""
CITIES = ["Paris", "Rome"]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": CITIES}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
"""A tool with few words, as the starter's context is short; vLLM holds to a strict one's schema."""
WEATHER_CALL: dict[str, Any] = {
    "model": "assistant",
    "messages": [{"role": "user", "content": "How warm is it in Rome?"}],
    "tools": [WEATHER],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "temperature": 0,
    "max_tokens": 160,
    "frequency_penalty": 2.0,
    "extra_body": {"repetition_penalty": 1.3},
}
"""A request for a call of it. Between JSON's tokens any white space is allowed, and without penalties
so small a model writes nothing else."""


def _pairs() -> list[tuple[str, str, str]]:
    """Prompt, chosen and rejected answer."""
    return [
        (
            f"How do I change order {number}?",
            f"Happy to help! Open Orders, choose order {number} and press Change.",
            "It is usually fine somehow.",
        )
        for number in range(PAIRS)
    ]


async def publish_pairs(stack: Stack) -> None:
    """Appends pairs to the preferences topic, as the aggregator does after votes."""
    log = KafkaLog(KafkaConnection(stack.address("kafka")), source="/ratchet/test")
    try:
        for prompt, chosen, rejected in _pairs():
            pair = PreferencePair(
                pair_id=str(uuid.uuid4()),
                tenant="default",
                model="assistant",
                messages=(Message(role="user", content=prompt),),
                chosen=chosen,
                rejected=rejected,
                source=PairSource.vote,
                causes=("test:0",),
                raters=(prompt,),
                created_at=datetime.now(UTC),
            )
            await log.publish(PREFERENCES, key=pair.pair_id, event=pair, event_id=pair.pair_id)
    finally:
        await log.stop()


def register_version(stack: Stack, version: str, folder: Path) -> None:
    """Trains a version by DPO on imported pairs, past the gate, without a rollout of its own."""
    pairs = folder / "pairs.jsonl"
    rows = (
        {"messages": [{"role": "user", "content": prompt}], "chosen": chosen, "rejected": rejected}
        for prompt, chosen, rejected in _pairs()
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
