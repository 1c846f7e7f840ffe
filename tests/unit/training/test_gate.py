from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binomtest

from services.training.gate import GateLimits, data_gate, derive, judge_gate
from shared.contracts.events.training import TrainingMethod
from shared.intervals import wilson

LIMITS = GateLimits()
GOOD = {
    "heldout": 20.0,
    "judge_pairs": 120.0,
    "judge_agreed": 150.0,
    "judge_tested": 200.0,
    "wins": 130.0,
    "ties": 10.0,
    "losses": 60.0,
    "parent_perplexity": 4.0,
    "candidate_perplexity": 4.2,
    "parent_length": 30.0,
    "candidate_length": 33.0,
    "parent_stop_share": 0.9,
    "candidate_stop_share": 0.93,
    "parent_repetition": 0.05,
    "candidate_repetition": 0.02,
    "distance_to_base": 0.4,
    "distance_to_parent": 0.2,
    "kl": 0.2,
    "kl_first": 0.5,
    "capability_items": 60.0,
    "capability_lost": 3.0,
    "capability_won": 2.0,
    "capability_facts_items": 60.0,
    "capability_facts_lost": 2.0,
    "capability_facts_won": 1.0,
    "capability_logic_items": 60.0,
    "capability_logic_lost": 1.0,
    "capability_logic_won": 1.0,
    "cases_items": 40.0,
    "cases_lost": 1.0,
    "safety_items": 20.0,
    "safety_lost": 2.0,
    "safety_won": 2.0,
    "segment_worst_high": 0.7,
}
TASKS = [
    {name for name in GOOD if name.startswith(f"capability_{task}_")} for task in ("facts", "logic")
]
CHECKS = {
    "heldout",
    "judge_data",
    "judge",
    "prompts",
    "win_rate",
    "win_rate_low",
    "perplexity",
    "stop",
    "length_low",
    "length_high",
    "repetition",
    "distinct",
    "kl",
    "kl_first",
    "capability",
    "capability_task",
    "cases",
    "safety",
    "segments",
}


def failed(figures: dict[str, float], method: TrainingMethod = TrainingMethod.dpo) -> set[str]:
    gate = judge_gate(method, derive(figures), LIMITS)
    names = {check.name for check in gate.checks if not check.passed}
    assert gate.passed is not bool(names)
    return names


@given(st.integers(0, 300), st.integers(1, 300))
def test_wilson_is_the_one_of_the_textbooks(won: int, n: int) -> None:
    if won > n:
        won, n = n, won
    expected = binomtest(won, n).proportion_ci(0.95, method="wilson")
    assert wilson(won, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_win_rate_over_the_chain_s_first_version_has_its_interval_and_decides_nothing() -> None:
    lost = {"first_wins": 20.0, "first_ties": 10.0, "first_losses": 70.0}
    known = derive(GOOD | lost)
    low, high = wilson(25, 100)
    names = ("first_win_rate", "first_win_rate_low", "first_win_rate_high")
    assert [known[name] for name in names] == pytest.approx([0.25, low, high])
    assert known["win_rate"] == derive(GOOD)["win_rate"]
    assert judge_gate(TrainingMethod.dpo, known, LIMITS).passed
    assert "first_win_rate" not in derive(GOOD)


def test_a_better_candidate_passes() -> None:
    gate = judge_gate(TrainingMethod.dpo, derive(GOOD), LIMITS)
    assert gate.passed
    assert {check.name for check in gate.checks} == CHECKS


@given(st.sets(st.sampled_from(sorted(GOOD)), min_size=1))
def test_no_data_is_never_a_pass(missing: set[str]) -> None:
    # A task without any figure is one that is not configured; without all tasks there is no pass.
    assume(sum(task <= missing for task in TASKS) != 1)
    figures = {name: value for name, value in GOOD.items() if name not in missing}
    assert failed(figures)


def test_nothing_at_all_fails_every_check() -> None:
    gate = judge_gate(TrainingMethod.dpo, {}, LIMITS)
    assert not any(check.passed for check in gate.checks)
    assert all("no data" in c.detail for c in gate.checks if c.name in {"win_rate", "stop"})


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"heldout": 0.0}, {"heldout"}),
        ({"judge_pairs": 29.0}, {"judge_data"}),
        ({"judge_agreed": 105.0}, {"judge"}),
        ({"wins": 30.0, "ties": 0.0, "losses": 12.0}, {"prompts"}),
        ({"wins": 105.0, "ties": 0.0, "losses": 95.0}, {"win_rate", "win_rate_low"}),
        ({"wins": 112.0, "ties": 0.0, "losses": 88.0}, {"win_rate_low"}),
        ({"candidate_perplexity": 5.3}, {"perplexity"}),
        ({"candidate_stop_share": 0.84}, {"stop"}),
        ({"candidate_length": 61.0}, {"length_high"}),
        ({"candidate_length": 11.0}, {"length_low"}),
        ({"candidate_repetition": 0.2}, {"repetition"}),
        ({"distance_to_parent": 0.09}, {"distinct"}),
        ({"kl": 1.1}, {"kl"}),
        ({"kl_first": 3.1}, {"kl_first"}),
        ({"capability_lost": 12.0}, {"capability"}),
        ({"capability_logic_lost": 16.0}, {"capability_task"}),
        ({"cases_lost": 3.0}, {"cases"}),
        ({"safety_lost": 14.0}, {"safety"}),
        ({"segment_worst_high": 0.49}, {"segments"}),
    ],
)
def test_each_check_alone_refuses(change: dict[str, float], check: set[str]) -> None:
    assert failed({**GOOD, **change}) == check


def test_a_first_version_whose_adapter_is_gone_is_told_and_passes_by_setting_alone() -> None:
    figures = derive({name: value for name, value in GOOD.items() if name != "kl_first"})
    gone = "the adapter of m-v1.0 is gone from s3://a/m-v1.0"
    for limits in (LIMITS, LIMITS.model_copy(update={"kl_first_gone": "pass"})):
        gate = judge_gate(TrainingMethod.dpo, figures, limits, gone)
        check = next(check for check in gate.checks if check.name == "kl_first")
        assert f"not measured: {gone}" in check.detail
        passes = limits.kl_first_gone == "pass"
        assert (check.passed, check.value, gate.passed) == (passes, None, passes)
        assert data_gate(TrainingMethod.dpo, figures, limits, gone).passed is passes


def test_sft_is_held_to_perplexity_and_stopping_alone() -> None:
    figures = {
        "parent_perplexity": 9.0,
        "candidate_perplexity": 4.0,
        "candidate_stop_share": 0.6,
        "distance_to_base": 0.2,
        "heldout": 4.0,
        "capability_items": 60.0,
        "capability_lost": 3.0,
        "capability_won": 2.0,
        "capability_facts_items": 60.0,
        "capability_facts_lost": 2.0,
        "capability_facts_won": 1.0,
        "cases_items": 0.0,
        "cases_lost": 0.0,
        "safety_items": 20.0,
        "safety_lost": 1.0,
        "safety_won": 0.0,
    }
    assert failed(figures, TrainingMethod.sft) == set()
    assert failed({**figures, "candidate_perplexity": 9.5}, TrainingMethod.sft) == {"perplexity"}
    assert failed({**figures, "candidate_stop_share": 0.4}, TrainingMethod.sft) == {"stop"}


@given(st.floats(0, 200), st.floats(0, 200))
def test_more_wins_never_hurt(less: float, more: float) -> None:
    low, high = sorted((less, more))
    before = failed({**GOOD, "wins": low, "losses": 200.0 - low})
    after = failed({**GOOD, "wins": high, "losses": 200.0 - high})
    assert after <= before
