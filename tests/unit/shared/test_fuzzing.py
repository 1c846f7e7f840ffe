"""Whatever stands in a record, decoding gives an event or says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.contracts.catalogue import BY_SCHEMA, EVENTS
from shared.kafka.envelope import UnreadableRecord, decode, models_by_type
from tests.support.fuzzing import Mutations

RECORDS = (1_000, pytest.param(20_000, marks=[pytest.mark.verify, pytest.mark.timeout(3600)]))
EXAMPLES = Path(__file__).parents[3] / "shared/contracts/examples"


@pytest.mark.parametrize("count", RECORDS)
def test_no_record_breaks_a_consumer(count: int) -> None:
    mutations, models = Mutations(seed=13), models_by_type(*EVENTS)
    examples = [
        (kind, json.loads(path.read_text()))
        for path in sorted(EXAMPLES.glob("*.json"))
        if (kind := path.stem.partition("+")[0]) in BY_SCHEMA and kind in models
    ]
    assert len(examples) >= len(EVENTS)
    read = 0
    for _ in range(count):
        kind, valid = mutations.rng.choice(examples)
        others = ((name.decode(), value) for name, value in mutations.headers())
        try:
            decode((("ce_type", kind.encode()), *others), mutations.body(valid), models)
        except UnreadableRecord:
            continue
        read += 1
    assert 0 < read < count
