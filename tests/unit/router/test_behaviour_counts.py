"""Answers wait for company before their behaviour is counted, and none is forgotten."""

from __future__ import annotations

import pytest

from services.router.behaviour import LENGTH_SCALE, AnswerBehaviour
from services.router.behaviour_counts import AT_ONCE, BehaviourCounts
from services.router.response import EngineResponse

CALL = {"tool_calls": [{"id": "c", "function": {"name": "weather", "arguments": "{}"}}]}


def test_short_answers_wait_for_each_other() -> None:
    counted: list[AnswerBehaviour] = []
    counts = BehaviourCounts()
    for number in range(1, 2 * AT_ONCE):
        counts.add(counted.append, EngineResponse("Yes.", "stop"), "")
        assert len(counted) == number // AT_ONCE * AT_ONCE
    counts.settle()
    assert len(counted) == 2 * AT_ONCE - 1
    counts.settle()
    assert len(counted) == 2 * AT_ONCE - 1


@pytest.mark.parametrize(
    "answer",
    [EngineResponse("x" * (LENGTH_SCALE + 1), "stop"), EngineResponse("", "tool_calls", more=CALL)],
)
def test_a_large_answer_is_not_kept_in_memory(answer: EngineResponse) -> None:
    counted: list[AnswerBehaviour] = []
    counts = BehaviourCounts()
    counts.add(counted.append, EngineResponse("Yes.", "stop"), "")
    counts.add(counted.append, answer, "")
    assert len(counted) == 2
