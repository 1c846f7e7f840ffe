"""General tasks item by item: what each arm got right, and the change with its interval."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.training import measures
from services.training.candidate import stages
from services.training.measures.tasks import task_changes, task_figures, tasks_of
from services.training.trainers.job import read_rows

TASKS = Path(measures.__file__).parents[1] / "capability.jsonl"


def answered(right: str) -> dict[str, bool]:
    return {str(number): sign == "+" for number, sign in enumerate(right)}


def test_a_task_s_figures_count_what_changed_sides() -> None:
    parent = {"facts": answered("++-+"), "parent only": answered("+")}
    figures = task_figures(parent, {"facts": answered("+--++")})
    assert figures == {
        "capability_facts_items": 4.0,
        "capability_facts_parent": 0.75,
        "capability_facts_candidate": 0.5,
        "capability_facts_lost": 1.0,
        "capability_facts_won": 0.0,
    }
    assert tasks_of(figures) == ["facts"]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_a_change_lies_in_its_interval_and_turns_with_the_arms(
    pairs: list[tuple[bool, bool]],
) -> None:
    parent = {"t": {str(n): before for n, (before, _) in enumerate(pairs)}}
    candidate = {"t": {str(n): after for n, (_, after) in enumerate(pairs)}}
    found = task_changes(task_figures(parent, candidate))
    change, low, high = (
        found[f"capability_t_{w}"] for w in ("change", "change_low", "change_high")
    )
    assert -1 <= low <= change + 1e-9
    assert change - 1e-9 <= high <= 1
    turned = task_changes(task_figures(candidate, parent))
    assert turned["capability_t_change_low"] == pytest.approx(-high)


def test_one_task_that_collapses_shows_where_the_sum_does_not() -> None:
    parent = {name: answered("+" * 60) for name in "abcdef"}
    candidate = {**parent, "f": answered("+" * 40 + "-" * 20)}
    for name in "abcde":
        parent = {**parent, name: answered("-" * 20 + "+" * 40)}
    found = task_changes(task_figures(parent, candidate))
    assert found["capability_worst_fall"] == found["capability_f_fall"] > 0.5
    assert found["capability_f_change_high"] < 0 < found["capability_a_change_low"]


def test_a_task_that_lacks_a_count_is_no_pass() -> None:
    figures = task_figures({"t": answered("++")}, {"t": answered("++")})
    assert "capability_worst_fall" in task_changes(figures)
    del figures["capability_t_won"]
    assert task_changes(figures) == {}


def test_the_shipped_tasks_are_six_kinds_of_fifty_and_more_without_repeats() -> None:
    rows = read_rows(TASKS)
    counts = Counter(row["task"] for row in rows)
    assert len(counts) == 6
    assert min(counts.values()) >= 50
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert all(row["good"] != row["bad"] for row in rows)


def test_the_harness_is_a_stage_where_its_tasks_are_configured() -> None:
    assert "harness" not in stages("dpo", judged=True)
    assert stages("sft", judged=False, harness=True)[-3:] == ("drift", "harness", "fingerprint")
