"""A pause ends early on proven improvement, where the strategy says so."""

from __future__ import annotations

from typing import Any

import pytest

from services.rollout import steps
from services.rollout.counts import ArmCounts, Arms, JudgeState, Slice
from services.rollout.errors import BadStrategy
from services.rollout.intervals import proven
from services.rollout.strategy import JudgeSettings
from services.rollout.strategy_files import parse
from shared.contracts.events.rollouts import DecisionKind
from tests.unit.rollout.test_steps import begun, seen
from tests.unit.rollout.test_voters import JUDGE, judged


def strategy(pause: dict[str, Any], bake: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "early",
        "steps": [
            {"setWeight": 5},
            {"pause": pause},
            {"analysis": {}},
            {"setWeight": 100},
            {"pause": bake},
        ],
    }


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("shown", [True, False])
def test_a_pause_ends_early_where_it_may_and_improvement_is_proven(
    asked: bool, shown: bool
) -> None:
    early = parse(strategy({"duration": "1d", "untilProven": asked}, {"duration": "1h"}))
    state = steps.look(begun().but(strategy=early), seen()).state
    state = steps.look(state, seen(5)).state
    some = ArmCounts(requests=100, scores=100)
    move = steps.look(state, seen(60, candidate=some, proven=shown))
    assert (move.state.step > state.step) is (asked and shown)
    if asked and shown:
        assert move.kind is not DecisionKind.hold


@pytest.mark.parametrize(
    ("pause", "bake", "word"),
    [
        ({"untilProven": True}, {"duration": "1h"}, "give one"),
        ({"duration": "1d"}, {"duration": "1h", "untilProven": True}, "bake time"),
    ],
)
def test_a_gate_and_a_bake_time_do_not_end_early(
    pause: dict[str, Any], bake: dict[str, Any], word: str
) -> None:
    with pytest.raises(BadStrategy, match=word):
        parse(strategy(pause, bake))


@pytest.mark.parametrize(("score", "wanted"), [(0.75, True), (0.62, False), (0.5, False)])
def test_improvement_is_proven_once_the_interval_lies_above_0(score: float, wanted: bool) -> None:
    state = JudgeState(
        stage_candidate=ArmCounts(scores=1_000, score_sum=1_000 * score),
        stage_stable=ArmCounts(scores=9_000, score_sum=5_400),
    )
    assert proven(JudgeSettings(), state) is wanted
    assert not proven(JudgeSettings(), JudgeState())


def test_a_good_day_after_the_weight_rose_proves_nothing() -> None:
    state = JudgeState()
    for weight, share, liked in ((500, 0.05, 0.4), (5_000, 0.5, 0.8)):
        counts = (2_000 * share, 2_000 * (1 - share))
        arms = [ArmCounts(requests=n, scores=n, score_sum=n * liked) for n in counts]
        day = Slice(candidate=arms[0], stable=arms[1], weight=weight)
        for _ in range(10):
            state = JUDGE.advance(state, day)
        assert not proven(JudgeSettings(), state)


def test_no_tenant_alone_proves_an_improvement() -> None:
    loved = Arms(
        candidate=ArmCounts(requests=100, scores=100, score_sum=100),
        stable=ArmCounts(requests=900, scores=900, score_sum=450),
    )
    same = Arms(
        candidate=ArmCounts(requests=100, scores=100, score_sum=50),
        stable=ArmCounts(requests=900, scores=900, score_sum=450),
    )
    for voters, wanted in (({"aa": loved, "bb": same, "cc": same}, False),
                           ({"aa": loved, "bb": loved, "cc": loved}, True)):  # fmt: skip
        state, _ = judged("tenant", looks=5, **voters)
        assert proven(JudgeSettings(), state) is wanted
