"""Mutated records of the topics' own events, under the keys that their writers use and odd ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shared.contracts.catalogue import BY_SCHEMA, events_of
from shared.contracts.topics import Topic
from shared.kafka.log import NewRecord
from tests.support.fuzzing import Mutations

EVENT_EXAMPLES = Path(__file__).parents[2] / "shared/contracts/examples"
_SUFFIXES = ("record", "settings", "evaluation", "state", "marks", "reward")
_ODD_KEYS = ("", "leader", "a:b:c", "/", "x" * 300, "😀")


class FuzzedRecords:
    """Records of one topic; the same seed gives the same ones."""

    def __init__(self, topic: Topic, seed: int) -> None:
        self._topic = topic.name
        self._mutations = Mutations(seed)
        classes = events_of(topic)
        self._valid: list[tuple[str, dict[str, Any]]] = [
            (event.ce_type, json.loads(path.read_text()))
            for path in sorted(EVENT_EXAMPLES.glob("*.json"))
            if (event := BY_SCHEMA.get(path.stem.partition("+")[0])) in classes
        ]
        assert self._valid, f"no example of {topic.events}"

    def record(self) -> NewRecord:
        """A record, one in ten of them a tombstone."""
        rng = self._mutations.rng
        kind, valid = rng.choice(self._valid)
        value = None if rng.random() < 0.1 else self._mutations.body(valid)
        others = tuple((name.decode(), said) for name, said in self._mutations.headers())
        return NewRecord(
            self._topic, self._key(valid), value, (("ce_type", kind.encode()), *others)
        )

    def _key(self, valid: dict[str, Any]) -> str:
        rng = self._mutations.rng
        name = next((one for one in valid.values() if isinstance(one, str) and one), "k")
        match rng.randrange(4):
            case 0:
                return rng.choice(_ODD_KEYS)
            case 1:
                return name
            case _:
                return f"{valid.get('version', name)}/{rng.choice(_SUFFIXES)}"
