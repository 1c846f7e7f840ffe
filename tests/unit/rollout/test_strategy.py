from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from services.rollout.errors import BadStrategy
from services.rollout.strategy import Analysis, Pause, SetWeight, Shadow
from services.rollout.strategy_files import parse, read

STRATEGIES = Path("services/rollout/strategies")
SHIPPED = sorted([*STRATEGIES.glob("*.yaml"), *Path("demo/strategies").glob("*.yaml")])


def good(**changes: Any) -> dict[str, Any]:
    return {
        "name": "s",
        "steps": [
            {"setWeight": 5, "errorLimit": "5%"},
            {"pause": {"duration": "30m"}},
            {"analysis": {"minimum": {"requests": 10}}},
            {"setWeight": 100},
            {"pause": {"duration": 60}},
        ],
        **changes,
    }


def test_the_default_is_the_way_of_the_requirement() -> None:
    strategy = read(STRATEGIES / "default.yaml")
    weights = [step.set_weight for step in strategy.steps if isinstance(step, SetWeight)]
    hours = [
        step.pause.duration / 3600
        for step in strategy.steps
        if isinstance(step, Pause) and step.pause.duration
    ]
    first = strategy.steps[0]
    assert isinstance(first, Shadow)
    assert (first.shadow.share, first.shadow.minimum) == (500, 200)
    assert weights == [500, 2_000, 5_000, 10_000]
    assert hours[:3] == [24, 48, 72]
    assert strategy.error_limits == (0.05, 0.03, 0.02)
    judge = strategy.judge
    assert (judge.error_margin, judge.satisfaction_margin) == (1.5, 0.9)
    assert (judge.slow_share, judge.crash_share, judge.alpha) == (0.01, 0.01, 0.01)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_each_shipped_strategy_is_named_as_its_file_and_round_trips(path: Path) -> None:
    strategy = read(path)
    assert strategy.name == path.stem
    again = parse(yaml.safe_load(yaml.safe_dump(strategy.to_dict())))
    assert again.sha256 == strategy.sha256


def test_the_hash_ignores_how_it_is_written_and_nothing_else() -> None:
    plain = parse(good())
    written_out = parse(good(judge={"alpha": 0.01, "errorMargin": 1.5}))
    assert plain.sha256 == written_out.sha256
    assert parse(good(judge={"alpha": 0.02})).sha256 != plain.sha256


def test_the_error_limit_and_the_weight_of_a_step_are_those_of_its_stage() -> None:
    strategy = parse(good())
    assert [strategy.weight_step(index) for index in range(5)] == [0, 0, 0, 3, 3]
    assert strategy.error_limit(2) == 0.05
    assert strategy.error_limit(4) is None


def test_an_empty_analysis_is_the_default_one() -> None:
    steps = [{"setWeight": 5}, {"analysis": None}, {"setWeight": 100}, {"pause": {}}]
    strategy = parse(good(steps=steps))
    assert isinstance(strategy.steps[1], Analysis)
    assert isinstance(strategy.steps[3], Pause)
    assert strategy.steps[3].pause.duration is None


@pytest.mark.parametrize(
    ("changes", "field", "rule"),
    [
        ({"steps": []}, "strategy.steps", "at least 2"),
        ({"steps": [{"shadow": {}}, {"setWeight": 100}]}, "strategy.steps.0.shadow.share", "req"),
        (
            {"steps": [{"shadow": {"share": 0}}, {"setWeight": 100}]},
            "strategy.steps.0.shadow",
            "above 0",
        ),
        ({"steps": [{"shadow": {"share": 5}}, {"pause": {}}]}, "strategy", "first one must be"),
        (
            {"steps": [{"setWeight": 100}, {"shadow": {"share": 5}}, {"pause": {}}]},
            "strategy",
            "one shadow step may come before it",
        ),
        ({"steps": [{"wait": 3}, {"setWeight": 100}]}, "strategy.steps.0", "exactly one of"),
        ({"steps": [{"setWeight": 5, "pause": {}}]}, "strategy.steps.0", "exactly one of"),
        (
            {"steps": [{"setWeight": "much"}, {"pause": {}}]},
            "strategy.steps.0.setWeight",
            "percentage",
        ),
        ({"steps": [{"setWeight": 0.001}, {"pause": {}}]}, "strategy.steps.0.setWeight", "decimal"),
        (
            {"steps": [{"setWeight": 100}, {"pause": {"duration": "soon"}}]},
            "strategy.steps.1.pause.duration",
            "24h",
        ),
        ({"steps": [{"setWeight": 5}, {"pause": {}}]}, "strategy", "100"),
        ({"steps": [{"setWeight": 5}, {"setWeight": 100}, {"pause": {}}]}, "strategy", "analysis"),
        (
            {"steps": [{"setWeight": 50}, {"analysis": {}}, {"setWeight": 20}, {"pause": {}}]},
            "strategy",
            "rise",
        ),
        ({"steps": [{"pause": {}}, {"setWeight": 100}]}, "strategy", "first"),
        (
            {"steps": [{"setWeight": 5}, {"analysis": {}}, {"setWeight": 100}]},
            "strategy",
            "bake",
        ),
        ({"judge": {"alpha": 2}}, "strategy.judge.alpha", "less than"),
        ({"judge": {"alpah": 0.01}}, "strategy.judge.alpah", "is not a known field"),
        ({"name": "no spaces"}, "strategy.name", "of the form"),
    ],
)
def test_what_is_wrong_names_field_and_rule(changes: dict[str, Any], field: str, rule: str) -> None:
    with pytest.raises(BadStrategy) as caught:
        parse(good(**changes))
    assert [named.field for named in caught.value.fields] == [field]
    assert all(named.rule and named.remedy for named in caught.value.fields)
    assert rule in caught.value.detail
    assert caught.value.detail.startswith(field)


def test_a_file_that_is_no_strategy_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadStrategy, match="cannot be read"):
        read(tmp_path / "none.yaml")
    path = tmp_path / "bad.yaml"
    path.write_text("steps: [")
    with pytest.raises(BadStrategy, match="not YAML"):
        read(path)
    path.write_text("just text")
    with pytest.raises(BadStrategy, match="mapping"):
        read(path)


def test_a_rule_that_quotes_a_semicolon_is_not_cut_there() -> None:
    with pytest.raises(BadStrategy) as refused:
        parse({"name": "s", "steps": [{"pause; then": 1}]})
    (field,) = refused.value.fields
    assert (field.field, field.rule) == ("strategy.steps.0", "has pause; then")
    assert field.remedy.startswith("give it exactly one of shadow")
    assert refused.value.detail == f"{field.field}: {field.rule}; {field.remedy}"
