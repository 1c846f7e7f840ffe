"""What a strategy means at some traffic, and its schema."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import numpy as np
import pytest
import yaml

from services.rollout.counts import ArmCounts, JudgeState, Slice
from services.rollout.explain import Traffic, explain
from services.rollout.judge import Judge
from services.rollout.strategy_files import json_schema, parse, read
from shared.contracts.events.rollouts import AnalysisOutcome

DEFAULT = Path("services/rollout/strategies/default.yaml")


def test_times_add_up_and_a_gate_never_ends_by_itself() -> None:
    plans = explain(read(DEFAULT), Traffic(requests_per_s=10))
    assert [plan.weight for plan in plans if plan.name.startswith("setWeight")] == [
        500,
        2_000,
        5_000,
        10_000,
    ]
    assert plans[0].ends_at_s == 3_600
    assert explain(read(DEFAULT), Traffic(requests_per_s=0.01))[0].takes_s == 200 / (0.01 * 0.05)
    assert plans[2].ends_at_s == 3_600 + 86_400
    assert plans[3].takes_s == 30 / (10 * 0.05 * 0.05)
    assert plans[-1].ends_at_s is not None
    gated = parse(
        {
            "name": "s",
            "steps": [
                {"setWeight": 5},
                {"pause": None},
                {"analysis": None},
                {"setWeight": 100},
                {"pause": {"duration": "1h"}},
            ],
        }
    )
    assert [plan.ends_at_s for plan in explain(gated, Traffic(1))][1:] == [None] * 4


def test_without_feedback_an_analysis_that_needs_it_never_ends() -> None:
    plans = explain(read(DEFAULT), Traffic(requests_per_s=10, feedback_share=0))
    assert plans[3].takes_s is None
    assert "never come" in plans[3].waits_for


def test_the_time_that_is_told_is_the_time_that_it_takes() -> None:
    """30 % errors at 5 % of 30 requests/s: the judge's own median is near what is told."""
    strategy = read(DEFAULT)
    told = explain(strategy, Traffic(requests_per_s=30))[1].catches[0]
    assert told.startswith("30% errors in ")
    seconds = float(told.split(" in ")[1].split(" ")[0])
    generator = np.random.default_rng(4)
    taken = [_seconds(generator, strategy.judge.error_margin) for _ in range(21)]
    assert seconds / 2 <= float(np.median(taken)) <= seconds * 2


def _seconds(generator: np.random.Generator, margin: float) -> int:
    judge, state = Judge(read(DEFAULT).judge, ()), JudgeState()
    for second in range(1, 120):
        n_c, n_s = int(generator.poisson(1.5)), int(generator.poisson(28.5))
        piece = Slice(
            candidate=ArmCounts(requests=n_c, failures=int(generator.binomial(n_c, 0.3))),
            stable=ArmCounts(requests=n_s, failures=int(generator.binomial(n_s, 0.005))),
        )
        state = judge.advance(state, piece)
        if judge.verdict(state, error_limit=None).outcome is AnalysisOutcome.failed:
            return second
    raise AssertionError(f"not within two minutes at a margin of {margin}")


@pytest.mark.parametrize(
    "path",
    sorted(
        [
            *Path("services/rollout/strategies").glob("*.yaml"),
            *Path("demo").rglob("strategies/*.yaml"),
        ]
    ),
)
def test_every_strategy_of_the_repository_fits_the_schema(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text()), json_schema())
    read(path)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": []},
        {"deadline": "soon"},
        {"judge": {"alpha": 0}},
        {"judge": {"slowShare": "1 in 10"}},
        {"unknown": 1},
        {"steps": [{"setWeight": 101}, {"pause": {"duration": 1}}]},
    ],
)
def test_what_the_schema_refuses_is_refused_before_a_rollout(change: dict[str, object]) -> None:
    given = {**yaml.safe_load(DEFAULT.read_text()), **change}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(given, json_schema())
