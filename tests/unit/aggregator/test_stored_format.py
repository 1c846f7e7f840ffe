"""Rows and checkpoints of format 2, as the release that introduced it wrote them, stay readable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.aggregator.contributions import decode_contribution
from services.aggregator.fold import FoldRules
from services.aggregator.rows import CapRow, PromptRow, TraceRow, checkpoint_key, decode_row
from shared.contracts.events.base import Event
from shared.contracts.events.interactions import Arm
from shared.contracts.events.quality import Tick
from shared.contracts.events.rated import RatedScore
from shared.contracts.events.votes import Choice
from shared.contracts.topics import FEEDBACK, INTERACTIONS, RATED, TICKS
from tests.support.aggregator import DOWN, at, feedback, interaction, vote
from tests.unit.aggregator.simulation import recovered, stored_aggregates

STORED: dict[str, Any] = json.loads(
    (Path(__file__).parent / "stored-format-2.json").read_text(encoding="utf-8")
)
"""The checkpoint, the rows of a batch that its worker wrote after it before it was killed, and the
checkpoint that this worker would have written next."""
ROWS = {key.encode(): value.encode() for key, value in STORED["rows"].items()}


def test_every_row_is_decoded_and_encoded_to_the_same_bytes() -> None:
    rows = {key: decode_row(key, stored) for key, stored in ROWS.items()}
    assert {type(row) for row in rows.values()} == {TraceRow, PromptRow, CapRow}
    kinds = {
        type(item) for row in rows.values() for mark in row.marks for item in mark.contributions
    }
    assert {kind.__name__ for kind in kinds} == {
        "FeedbackCounted", "FiguresChanged", "OutcomeCounted", "ScoreCounted", "VoteCounted",
    }  # fmt: skip
    assert {key: row.encode() for key, row in rows.items()} == ROWS


def test_a_successor_replays_what_the_rows_hold_to_the_same_checkpoint() -> None:
    stored = {checkpoint_key(0): STORED["checkpoint"].encode(), **ROWS}
    state = recovered(FoldRules(scores_per_day=1), stored)
    score = RatedScore(
        score_id="s9", cap_key="k9", tenant="acme", trace_id="t1", version="assistant-v1.0",
        arm=Arm.stable, rollout="r1", segment="", score=1.0, created_at=at(1.0),
    )  # fmt: skip
    events: list[tuple[str, int, Event]] = [
        (INTERACTIONS, 3, interaction("t4")),
        (FEEDBACK, 20, feedback("f6", "t4", DOWN, user="e")),
        (FEEDBACK, 21, vote("c2", Choice.tie)),
        (RATED, 50, score),
        (TICKS, 0, Tick(at=at(1000), partition=0)),
    ]
    for number, (topic, offset, event) in enumerate(events):
        ts_ms = int(event.at.timestamp() if isinstance(event, Tick) else 20 + number) * 1000
        assert state.apply(topic, offset, event, event.to_json(), ts_ms)
    after = stored_aggregates({checkpoint_key(0): STORED["checkpoint_after"].encode()})
    assert state.aggregates == after


@pytest.mark.parametrize("stored", [["tips", "v1"], ["feedback", "v1"], ["vote", 1, 2, 3], []])
def test_an_unknown_contribution_is_refused_and_never_dropped(stored: list[object]) -> None:
    with pytest.raises(ValueError, match="unknown contribution"):
        decode_contribution(stored)
